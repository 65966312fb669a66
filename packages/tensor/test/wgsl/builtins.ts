/** Built-in functions of WGSL as JavaScript, those that the kernels use. */
import type { Emitter } from "./emit.ts";
import {
  commonElem,
  defaultElem,
  type Elem,
  elemOf,
  scalar,
  type Type,
  VOID,
  vec,
  withElem,
  zeroOf,
} from "./types.ts";

/** An expression, and how to read and write where it lies, if that is memory. */
export interface Typed {
  readonly js: string;
  readonly type: Type;
  readonly load?: string;
  readonly store?: (value: string) => string;
}

type Builtin = (given: Typed[], template: Type | null, emitter: Emitter) => Typed;

const zip = (f: string, given: readonly Typed[]) => `zip(${[f, ...given.map(({ js }) => js)].join(", ")})`;

/** All operands of one type, that of the first that is no single number. */
function together(given: readonly Typed[]): { elem: Elem; type: Type } {
  const elem = defaultElem(given.map(({ type }) => elemOf(type)).reduce(commonElem));
  const shape = given.find(({ type }) => type.kind !== "scalar") ?? given[0];
  return { elem, type: withElem(shape.type, elem) };
}

/** Number by number, and rounded. */
const each =
  (f: string): Builtin =>
  (given) => {
    const { elem, type } = together(given);
    const round = elem === "f32" ? "fround" : elem === "f16" ? "half" : "";
    const inputs = ["a", "b", "c"].slice(0, given.length).join(", ");
    return { js: zip(`(${inputs}) => ${round}(${f}(${inputs}))`, given), type };
  };

/** From one type of numbers to another, as WGSL converts values. */
function conversion(from: Elem, to: Elem): string {
  const limits = to === "u32" ? "0, 4294967295" : "-2147483648, 2147483647";
  if (to === "f32") return from === "bool" ? "Number" : "fround";
  if (to === "f16") return from === "bool" ? "Number" : "half";
  if (to === "bool") return "Boolean";
  if (from === "f32" || from === "f16" || from === "float") return `(x) => Math.trunc(clamp(x, ${limits}))`;
  return to === "u32" ? "(x) => x >>> 0" : "(x) => x | 0";
}

function construct(given: Typed[], type: Type | null, emitter: Emitter): Typed {
  if (type === null) throw new Error("a constructor of no type");
  if (given.length === 0) return { js: zeroOf(type), type };
  if (type.kind === "struct") {
    const fields = type.fields.map(([name, field], i) => `${name}: ${emitter.convert(given[i], field).js}`);
    return { js: `({${fields.join(", ")}})`, type };
  }
  if (type.kind === "scalar") {
    return { js: `(${conversion(elemOf(given[0].type), type.elem)})(${given[0].js})`, type };
  }
  if (type.kind === "mat") {
    const columns = given.map((column) => emitter.convert(column, vec(type.elem, 4)).js);
    return { js: `[${columns.join(", ")}]`, type };
  }
  if (type.kind !== "vec") throw new Error("no such constructor");
  const parts = given.map((part) => {
    const convert = conversion(elemOf(part.type), type.elem);
    const js = elemOf(part.type) === type.elem ? part.js : zip(convert, [part]);
    return part.type.kind === "vec" ? `...${js}` : js;
  });
  if (given.length === 1 && given[0].type.kind === "scalar")
    return { js: `Array(${type.size}).fill(${parts[0]})`, type };
  return { js: `[${parts.join(", ")}]`, type };
}

/** A vector or matrix whose type of numbers is that of what it is made of. */
const constructLike =
  (make: (elem: Elem) => Type): Builtin =>
  (given, template, emitter) => {
    if (template) return construct(given, template, emitter);
    const elems = given.map(({ type }) => elemOf(type)).reduce(commonElem);
    const type = make(elems);
    return construct(
      given.map((one) => emitter.convert(one, withElem(one.type, elems))),
      type,
      emitter,
    );
  };

const conversionTo =
  (elem: Elem): Builtin =>
  (given, _, emitter) =>
    construct(given, scalar(elem), emitter);

/** Where a matrix begins in memory and how far its rows are apart, in numbers. */
function place(array: Typed, at: Typed, step: Typed): string {
  if (array.type.kind !== "array") throw new Error("matrices are in arrays");
  const width = array.type.of.kind === "vec" ? array.type.of.size : 1;
  return `${array.js}, (${at.js}) * ${width}, (${step.js}) * ${width}`;
}

const loadMatrix =
  (major: "row" | "col"): Builtin =>
  ([array, at, step], template) => {
    if (template?.kind !== "subgroupMatrix") throw new Error("a load of no matrix");
    return { js: `loadMatrix($, "${template.use}", "${major}", ${place(array, at, step)})`, type: template };
  };

const RESULT: Type = { kind: "subgroupMatrix", use: "result" };
const NUMBERS = ["min", "max", "abs", "exp", "log"];

export const BUILTINS = new Map<string, Builtin>([
  ...NUMBERS.map((name): [string, Builtin] => [name, each(`Math.${name}`)]),
  ["clamp", each("clamp")],
  ["construct", construct],
  ...(["u32", "i32", "f32", "f16"] as const).map((elem): [string, Builtin] => [elem, conversionTo(elem)]),
  ...[2, 4].map((size): [string, Builtin] => [`vec${size}`, constructLike((elem) => vec(elem, size))]),
  ["mat4x4", constructLike((elem) => ({ kind: "mat", elem }))],
  ["dot", (given) => ({ js: `dot(${given.map(({ js }) => js)})`, type: scalar(together(given).elem) })],
  ["any", ([a]) => ({ js: `${a.js}.some(Boolean)`, type: scalar("bool") })],
  [
    "select",
    ([no, yes, condition]) => {
      const { type } = together([no, yes]);
      return { js: zip("(a, b, c) => (c ? b : a)", [no, yes, condition]), type };
    },
  ],
  [
    "bitcast",
    ([x], template) => {
      const to = template!;
      return { js: zip(`(x) => bits("${elemOf(x.type)}", "${elemOf(to)}", x)`, [x]), type: to };
    },
  ],
  ["workgroupBarrier", () => ({ js: "(yield)", type: VOID })],
  ["workgroupUniformLoad", ([x]) => ({ js: `(yield* uniform(() => ${x.js}))`, type: x.type })],
  [
    "subgroupShuffleXor",
    ([x, mask]) => ({ js: `(yield* shuffleXor($, ${x.js}, ${mask.js}))`, type: x.type }),
  ],
  ["subgroupMax", ([x]) => ({ js: `(yield* subgroupMax($, ${x.js}))`, type: x.type })],
  ["atomicStore", ([x, value]) => ({ js: `${x.js} = ${value.js}`, type: VOID })],
  // Known by their bare names too; the emitter appends the order of the template.
  ["subgroupMatrixLoad", loadMatrix("row")],
  ["subgroupMatrixLoad.row_major", loadMatrix("row")],
  ["subgroupMatrixLoad.col_major", loadMatrix("col")],
  [
    "subgroupMatrixMultiplyAccumulate",
    (given) => ({ js: `multiplyAccumulate($, ${given.map(({ js }) => js)})`, type: RESULT }),
  ],
  ["subgroupMatrixStore", () => ({ js: "", type: VOID })],
  [
    "subgroupMatrixStore.row_major",
    ([array, at, matrix, step]) => ({
      js: `storeMatrix($, ${matrix.js}, ${place(array, at, step)})`,
      type: VOID,
    }),
  ],
]);
