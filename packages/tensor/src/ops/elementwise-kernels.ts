/** Builds the rows of elementwise ops and dispatches them: equal shapes as vec4s, broadcasting by kernels/spread.wgsl. */

import { broadcastShape, broadcastSource, joinAxes } from "../broadcasting.ts";
import { type DType, EPS, type HostArray, LARGEST_F16 } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import {
  defineOp,
  type Inferred,
  type KernelContext,
  type KernelEntry,
  type NumberRange,
  type OpRow,
} from "../op.ts";
import { hasEightLanes } from "../profile.ts";
import { formatShape, type Shape, sameShape, sizeOf } from "../shape.ts";
import type { TensorSpec } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";

/**
 * Work of a workgroup of the elementwise kernels: VECTORS vec4s for each of its LANES threads, LANES apart, so that neighbouring
 * threads read neighbouring vectors. On a software driver every workgroup has a cost, and so has every vector of an unrolled
 * loop; it unrolls up to 32 rounds.
 */
const GROUPS = {
  usual: { LANES: 64, VECTORS: 4 },
  spread: { LANES: 64, VECTORS: 1 }, // it has more arithmetic
  eightLanes: { LANES: 8, VECTORS: 64 },
} as const;

/** Number of axes of kernels/spread.wgsl. */
const SPREAD_AXES = 6;

type Scalars = readonly [scalar?: number, other?: number];

/** What an op gives to a kernel of the family. */
interface Elementwise {
  /** The body of the kernel's one-line function: WGSL over vec4s. */
  readonly body?: string;
  /** The values of `p.scalar` and `p.other` in the body. */
  readonly scalars?: Scalars;
  /** Parameters of a kernel without a body, by their names in `Params`. */
  readonly params?: Readonly<Record<string, number | boolean>>;
  /** Tensors that are bound whole in every window. */
  readonly whole?: Readonly<Record<string, Tensor | null>>;
}

/** Dispatches an elementwise kernel over equal shapes, in windows that fit a binding. */
export function runElementwise(
  k: KernelContext,
  kernel: KernelEntry,
  bind: Readonly<Record<string, Tensor | null>>,
  { body, scalars: [scalar = 0, other = 0] = [], params, whole }: Elementwise = {},
  bodyName = "apply",
): void {
  const group = hasEightLanes(k.profile) ? GROUPS.eightLanes : GROUPS.usual;
  const tensors = Object.values(bind);
  const size = tensors.find((tensor) => tensor !== null)!.size;
  const ranges = k.split(size, tensors);
  for (const range of ranges) {
    const isWhole = ranges.length === 1; // in most calls; this avoids creating objects that repeat the tensors
    const windows = isWhole
      ? bind
      : Object.fromEntries(Object.entries(bind).map(([name, t]) => [name, t && k.rows(t, size, range)]));
    const vectors = Math.ceil(range.count / 4);
    k.run(kernel, {
      bind: whole ? { ...windows, ...whole } : windows,
      params: body === undefined ? { vectors, ...params } : { vectors, scalar, other },
      grid: Math.ceil(vectors / (group.LANES * group.VECTORS)),
      consts: group,
      ...(body !== undefined && { bodies: { [bodyName]: body } }),
    });
  }
}

/** x = value. */
export const runFill = (k: KernelContext, x: Tensor, value: number): void =>
  runElementwise(k, "fill/main", { x }, { params: { value } });

/** total = total + x. */
export const runAccumulate = (k: KernelContext, total: Tensor, x: Tensor): void =>
  runElementwise(k, "accumulate/main", { total, x });

/** Operands of spread.wgsl; only `choose` has a mask. */
interface SpreadOperands {
  readonly a: Tensor | null;
  readonly b: Tensor | null;
  readonly mask?: Tensor;
}

/** Dispatches y = x in the type of y; in f16 values beyond its range become infinite. */
export const runConvert = (k: KernelContext, x: Tensor, y: Tensor): void =>
  runElementwise(k, "unary/main", { x, y }, { body: "return x;" });

/** Dispatches y = x as f16; values beyond its range become its largest number, never infinity. */
export function runToF16(k: KernelContext, x: Tensor, y: Tensor): void {
  const body = "return clamp(x, vec4(-p.scalar), vec4(p.scalar));";
  runElementwise(k, "unary/main", { x, y }, { body, scalars: [LARGEST_F16] });
}

/** Dispatches an entry point of spread.wgsl in windows of the outermost axis of the output. */
export function runSpread(
  k: KernelContext,
  op: string,
  entry: "main" | "compare" | "choose",
  { a, b, mask }: SpreadOperands,
  output: { readonly y: Tensor } | { readonly m: Tensor },
  bodies: Readonly<Record<string, string>>,
  [scalar = 0, other = 0]: Scalars = [],
): void {
  const operands: Record<string, Tensor | null> = mask ? { a, b, mask } : { a, b };
  const [[outputName, y]] = Object.entries<Tensor>(output);
  if (y.size === 0) return;
  const present = Object.values(operands).map((tensor): Shape => tensor?.shape ?? []);
  const axes = joinAxes(y.shape, present);
  if (axes.length > SPREAD_AXES) {
    throw new SidenetError(
      "T-SHAPE",
      `${op}: broadcasting ${present.map(formatShape).join(" and ")} alternates over more than ${SPREAD_AXES} runs of axes.`,
    );
  }
  const group = hasEightLanes(k.profile) ? GROUPS.eightLanes : GROUPS.spread;
  const outermost = axes[0] ?? { extent: 1, has: present.map(() => false) };
  const windowed = Object.values(operands).filter((_, i) => outermost.has[i]);
  for (const range of k.split(outermost.extent, [y, ...windowed])) {
    const extents = [range.count, ...axes.slice(1).map(({ extent }) => extent)].reverse();
    const size = sizeOf(extents);
    const bits = (operand: number) =>
      [...axes].reverse().reduce((sum, { has }, axis) => sum + (has[operand] ? 2 ** axis : 0), 0);
    const [d0, d1, d2, d3, d4, d5] = [...extents, 1, 1, 1, 1, 1, 1];
    k.run(`spread/${entry}`, {
      bind: {
        ...Object.fromEntries(
          Object.entries(operands).map(([name, tensor], i) => [
            name,
            tensor && outermost.has[i] ? k.rows(tensor, outermost.extent, range) : tensor,
          ]),
        ),
        [outputName]: k.rows(y, outermost.extent, range),
      },
      params: {
        size,
        rank: extents.length,
        d0,
        d1,
        d2,
        d3,
        d4,
        d5,
        aAxes: bits(0),
        bAxes: bits(1),
        maskAxes: mask ? bits(2) : 0,
        hasA: a !== null,
        hasB: b !== null,
        scalar,
        other,
      },
      grid: Math.ceil(size / 4 / (group.LANES * group.VECTORS)),
      consts: { ...group, FOURS: Number(d0 % 4 === 0) },
      bodies,
    });
  }
}

/** What the rows of elementwise ops have in common. */
export interface ElementwiseRow<A extends object> {
  readonly name: string;
  readonly doc: string;
  /** Every attribute, with its default. */
  readonly attrs?: A;
  /** Ranges of number attributes. One without a range may be any finite number. */
  readonly ranges?: { readonly [K in keyof A]?: NumberRange };
  /** Describes what is wrong with attributes of the right types and ranges, or null. */
  readonly check?: (attrs: A) => string | null;
  /** The body of the function `apply` from vec4<f32> to vec4<f32>, with `p.scalar` and `p.other` from `scalars`. */
  readonly wgsl: string | ((attrs: A) => string);
  /** The values of `p.scalar` and `p.other` in the WGSL text. Default 0. */
  readonly scalars?: (attrs: A) => readonly [scalar: number, other?: number];
  /** Attributes of a random case, if not the defaults. */
  readonly draw?: (pick: TestRandom) => Partial<A>;
}

/** What an op row takes from an elementwise row as it is. */
export const commonOf = <A extends object>(row: ElementwiseRow<A>) => ({
  name: row.name,
  doc: row.doc,
  attrs: row.attrs ?? ({} as A),
  ranges: row.ranges ?? {},
  check: (_: unknown, attrs: A) => row.check?.(attrs) ?? null,
});

/** What a call of a row gives to its kernel. */
export const bodyOf = <A extends object>({ wgsl, scalars }: ElementwiseRow<A>, attrs: A) => ({
  body: typeof wgsl === "string" ? wgsl : wgsl(attrs),
  scalars: scalars?.(attrs) ?? [],
});

/** y = f(x); its WGSL is the body of `apply(x: vec4<f32>) -> vec4<f32>`. */
export interface UnaryRow<A extends object> extends ElementwiseRow<A> {
  /** The same formula in double. */
  readonly f: (x: number, attrs: A) => number;
  /** Operations for each element. */
  readonly flops: number;
  /** Relative tolerance, of the largest |y| of the tensor. */
  readonly rel: number;
  /** Absolute tolerance in addition. */
  readonly abs?: number;
  /** Values of a random case, if not normal ones. */
  readonly values?: (pick: TestRandom, size: number) => ArrayLike<number>;
}

type UnarySig = "x[N..] -> y[N..]";

/** The row of an elementwise op y = f(x). */
// biome-ignore lint/complexity/noBannedTypes: a row without attributes
export function unary<A extends object = {}>(row: UnaryRow<A>): OpRow<UnarySig, A> {
  return defineOp<UnarySig, A>({
    ...commonOf(row),
    sig: "x[N..] -> y[N..]",
    reference({ x, y }, _, attrs) {
      for (let i = 0; i < x.length; i++) y[i] = row.f(x[i], attrs);
    },
    kernel: (k, { x, y }, _, attrs) => runElementwise(k, "unary/main", { x, y }, bodyOf(row, attrs)),
    draw: (pick) => {
      const { values } = row;
      return {
        dims: { N: pick.shape(3000) },
        attrs: row.draw?.(pick) ?? {},
        values: values ? { x: (size: number) => values(pick, size) } : {},
      };
    },
    close: { rel: row.rel, abs: row.abs ?? 0 },
    flops: ({ N }) => row.flops * N,
  });
}

/** Draws shapes of two operands that broadcast to at most 3,000 elements; half of the time they are equal. */
export function drawBroadcast(pick: TestRandom): { A: Shape; B: Shape } {
  const full = pick.shape(3000, 4);
  if (pick.chance(0.5)) return { A: full, B: full };
  const thinned = (): Shape => {
    const first = pick.chance(0.4) ? pick.int(0, full.length) : 0;
    return full.slice(first).map((extent) => (pick.chance(0.3) ? 1 : extent));
  };
  return { A: thinned(), B: thinned() };
}

/** Draws values at least 0.01 away from every multiple of 1/2, which are the bounds of random cases. */
export const drawAwayFromBounds = (pick: TestRandom, size: number): Float64Array =>
  Float64Array.from({ length: size }, () => pick.int(-5, 4) / 2 + 0.01 + 0.48 * pick.unit());

/** y = f(a, b), broadcasting; its WGSL is the body of `apply(a: vec4<f32>, b: vec4<f32>) -> vec4<f32>`. */
// biome-ignore lint/complexity/noBannedTypes: a row without attributes
export interface BinaryRow<A extends object = {}> extends ElementwiseRow<A> {
  /** The same formula in double. */
  readonly f: (a: number, b: number, attrs: A) => number;
  /** Operations for each element of y. Default: 1. */
  readonly flops?: number;
  /** Relative tolerance, of the largest |y| of the tensor. Default: that of one rounding. */
  readonly rel?: number;
  /** Absolute tolerance in addition. */
  readonly abs?: number;
  /** Values of a random case by operand, if not normal ones. */
  readonly values?: (pick: TestRandom) => Readonly<Record<string, (size: number) => ArrayLike<number>>>;
}

type BinarySig = "a[A..] b[B..] -> y[Y..]";

const inferBroadcast = (op: string, a: TensorSpec, b: TensorSpec, dtype: DType): Inferred => ({
  outputs: [{ shape: broadcastShape(op, [a.shape, b.shape]), dtype }],
});

/** y = f(a, b), where a and b repeat along axes of y. */
function mapBroadcast(
  { a, b, y }: Record<"a" | "b" | "y", HostArray>,
  shapes: Record<"a" | "b" | "y", Shape>,
  f: (a: number, b: number) => number,
): void {
  for (let i = 0; i < y.length; i++) {
    y[i] = f(a[broadcastSource(i, shapes.y, shapes.a)], b[broadcastSource(i, shapes.y, shapes.b)]);
  }
}

/** The row of an elementwise op y = f(a, b), which broadcasts. */
// biome-ignore lint/complexity/noBannedTypes: a row without attributes
export function binary<A extends object = {}>(row: BinaryRow<A>): OpRow<BinarySig, A> {
  return defineOp<BinarySig, A>({
    ...commonOf(row),
    sig: "a[A..] b[B..] -> y[Y..]",
    infer: ([a, b]) => inferBroadcast(row.name, a, b, a.dtype),
    reference: ({ a, b, y }, _dims, attrs, shapes) =>
      mapBroadcast({ a, b, y }, shapes, (a, b) => row.f(a, b, attrs)),
    kernel(k, { a, b, y }, _, attrs) {
      const given = bodyOf(row, attrs);
      if (sameShape(a.shape, b.shape)) runElementwise(k, "binary/main", { a, b, y }, given);
      else runSpread(k, row.name, "main", { a, b }, { y }, { apply: given.body }, given.scalars);
    },
    draw: (pick) => ({
      dims: { ...drawBroadcast(pick) },
      attrs: row.draw?.(pick) ?? {},
      values: row.values?.(pick) ?? {},
    }),
    close: { rel: row.rel ?? EPS, abs: row.abs ?? 0 }, // one rounding
    flops: ({ Y }) => (row.flops ?? 1) * Y,
  });
}

type ComparisonSig = "a[A..] b[B..] -> m:u8[Y..]";

/** m = 1 where the relation holds, else 0, broadcasting. */
export function comparison(row: {
  readonly name: string;
  readonly doc: string;
  /** The body of `test(a: vec4<f32>, b: vec4<f32>) -> vec4<bool>`. */
  readonly wgsl: string;
  readonly f: (a: number, b: number) => boolean;
}): OpRow<ComparisonSig, object> {
  return defineOp<ComparisonSig, object>({
    name: row.name,
    doc: row.doc,
    sig: "a[A..] b[B..] -> m:u8[Y..]",
    infer: ([a, b]) => inferBroadcast(row.name, a, b, "u8"),
    reference: ({ a, b, m: y }, _dims, _attrs, { m, ...shapes }) =>
      mapBroadcast({ a, b, y }, { ...shapes, y: m }, (a, b) => Number(row.f(a, b))),
    kernel(k, { a, b, m }) {
      if (sameShape(a.shape, b.shape)) {
        runElementwise(k, "binary/compare", { a, b, m }, { body: row.wgsl }, "test");
      } else runSpread(k, row.name, "compare", { a, b }, { m }, { test: row.wgsl });
    },
    // Small integers, so that equal values are frequent.
    draw: (pick) => {
      const whole = (size: number) => pick.ints(size, -2, 2);
      return { dims: { ...drawBroadcast(pick) }, values: { a: whole, b: whole } };
    },
    close: { rel: 0 }, // no arithmetic
    flops: ({ Y }) => Y,
  });
}
