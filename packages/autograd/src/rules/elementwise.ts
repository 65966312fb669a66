import { gradRow, IN_PLACE, INTEGER_INPUT, INTEGER_OUTPUT } from "./grad-row.ts";
import { unbroadcast, widen } from "./shared.ts";

// rules/index.ts spreads this file into the gradient table: it exports nothing but rows.
// Rules of binary ops sum the gradient over the axes along which their operand was broadcast (unbroadcast). What a rule makes lives
// until it ends: a scope in it frees what it needs no longer.

export const add = gradRow("add", {
  a: { saves: [], pull: (ops, dy, _saved, context) => unbroadcast(ops, dy, context) },
  b: { saves: [], pull: (ops, dy, _saved, context) => unbroadcast(ops, dy, context) },
});

export const sub = gradRow("sub", {
  a: { saves: [], pull: (ops, dy, _saved, context) => unbroadcast(ops, dy, context) },
  b: { saves: [], pull: (ops, dy, _saved, context) => ops.neg(unbroadcast(ops, dy, context)) },
});

export const mul = gradRow("mul", {
  a: {
    saves: ["b"],
    pull: (ops, dy, { b }, context) => unbroadcast(ops, dy, context, (wide) => ops.mul(wide, b)),
  },
  b: {
    saves: ["a"],
    pull: (ops, dy, { a }, context) => unbroadcast(ops, dy, context, (wide) => ops.mul(wide, a)),
  },
});

export const div = gradRow("div", {
  a: {
    saves: ["b"],
    pull: (ops, dy, { b }, context) => unbroadcast(ops, dy, context, (wide) => ops.div(wide, b)),
  },
  b: {
    saves: ["a", "b"],
    // -(dy / b) (a / b): two quotients, since b² may overflow or underflow.
    pull: (ops, dy, { a, b }, context) =>
      ops.neg(
        unbroadcast(ops, dy, context, (wide) =>
          dy.device.scope(() => ops.mul(ops.div(wide, b), ops.div(a, b))),
        ),
      ),
  },
});

// Where both are equal, a gets the gradient.

export const minimum = gradRow("minimum", {
  a: {
    saves: ["a", "b"],
    pull: (ops, dy, { a, b }, context) =>
      unbroadcast(ops, dy, context, (wide) => ops.where(ops.lessEqual(a, b), wide)),
  },
  b: {
    saves: ["a", "b"],
    pull: (ops, dy, { a, b }, context) =>
      unbroadcast(ops, dy, context, (wide) => ops.where(ops.less(b, a), wide)),
  },
});

export const maximum = gradRow("maximum", {
  a: {
    saves: ["a", "b"],
    pull: (ops, dy, { a, b }, context) =>
      unbroadcast(ops, dy, context, (wide) => ops.where(ops.lessEqual(b, a), wide)),
  },
  b: {
    saves: ["a", "b"],
    pull: (ops, dy, { a, b }, context) =>
      unbroadcast(ops, dy, context, (wide) => ops.where(ops.less(a, b), wide)),
  },
});

export const equal = INTEGER_OUTPUT;
export const less = INTEGER_OUTPUT;
export const lessEqual = INTEGER_OUTPUT;

export const where = gradRow("where", {
  mask: INTEGER_INPUT,
  a: {
    saves: ["mask"],
    pull: (ops, dy, { mask }, context) => unbroadcast(ops, dy, context, (wide) => ops.where(mask, wide)),
  },
  b: {
    saves: ["mask"],
    pull: (ops, dy, { mask }, context) =>
      unbroadcast(ops, dy, context, (wide) => ops.where(mask, null, wide)),
  },
});

export const neg = gradRow("neg", { x: { saves: [], pull: (ops, dy) => ops.neg(dy) } });

export const abs = gradRow("abs", {
  x: { saves: ["x"], pull: (ops, dy, { x }) => ops.mul(dy, ops.sign(x)) },
});

export const sign = gradRow("sign", { x: { saves: [], pull: (ops, dy) => ops.scale(dy, { factor: 0 }) } });

export const exp = gradRow("exp", { x: { saves: ["y"], pull: (ops, dy, { y }) => ops.mul(dy, y) } });

export const log = gradRow("log", {
  x: {
    saves: ["x"],
    pull: (ops, dy, { x }) => ops.div(dy, ops.clamp(widen(ops, x, "f32"), { min: 2 ** -126 })),
  },
});

export const sqrt = gradRow("sqrt", {
  // The derivative is infinite at 0: there it is that of the smallest number of the type (subnormal f32 aside), which is finite.
  x: {
    saves: ["y"],
    pull(ops, dy, { y }) {
      const smallest = y.dtype === "f16" ? 2 ** -12 : 2 ** -63;
      const twice = dy.device.scope(() => ops.clamp(ops.scale(y, { factor: 2 }), { min: 2 * smallest }));
      return ops.div(dy, twice);
    },
  },
});

export const pow = gradRow("pow", {
  x: {
    saves: ["x"],
    // x^0 is constant, but 0 · x^-1 is NaN at x = 0.
    pull: (ops, dy, { x }, { attrs: { exponent } }) =>
      exponent === 0
        ? ops.scale(dy, { factor: 0 })
        : ops.scale(
            dy.device.scope(() => ops.mul(dy, ops.pow(x, { exponent: exponent - 1 }))),
            { factor: exponent },
          ),
  },
});

export const clamp = gradRow("clamp", {
  // The bounds themselves pass dy on: there clamp(x) = x.
  x: {
    saves: ["x"],
    pull: (ops, dy, { x }, { attrs }) => ops.where(ops.equal(x, ops.clamp(x, attrs)), dy),
  },
});

export const fill = IN_PLACE;

export const scale = gradRow("scale", {
  x: { saves: [], pull: (ops, dy, _saved, { attrs }) => ops.scale(dy, { factor: attrs.factor }) },
});

export const scaleBy = gradRow("scaleBy", {
  x: { saves: ["s"], pull: (ops, dy, { s }) => ops.scaleBy(dy, s) },
  s: { saves: ["x"], pull: (ops, dy, { x }) => ops.sum(ops.mul(widen(ops, dy, "f32"), x), { axis: null }) },
});

export const cast = gradRow("cast", {
  x: { saves: [], pull: (ops, dy, _saved, { dtype }) => ops.cast(dy, { to: dtype }) },
});
