/**
 * Signatures: one line that is the shape rule, the argument list and the error text of an op.
 *
 *   "x[N..,C] gain?[C] -> y[N..,C] | rstd:f32[N..]"
 *
 * - `x[N..,C]`   an input; `C` binds one extent, `N..` (at most one in a shape) any number of axes, product N
 * - `gain?[C]`   may be left out          - `p![N..]`      updated in place
 * - `ids:i32[N]` has that dtype; `x:number[N]` any but u8, `x:any[N]` any; without a dtype an input is f32 or f16, an output
 *   has the dtype of the first such input
 * - after `->` the outputs; after `|` the residuals: made for a backward pass, and only when asked for
 */
import type { DType } from "./dtype.ts";
import { SidenetError } from "./errors.ts";
import { formatShape, type Shape, sizeOf } from "./shape.ts";

/** One operand of a signature line. */
export interface Operand {
  readonly name: string;
  /** The one dtype it has; null where several go. */
  readonly dtype: DType | null;
  readonly accepts: readonly DType[];
  readonly optional: boolean;
  readonly updated: boolean;
  readonly residual: boolean;
  /** Dimension letters; `N..` marks a run of axes. */
  readonly dims: readonly string[];
  /** The same letters without the mark, and which of them is the run, or -1: every call needs them. */
  readonly letters: readonly string[];
  readonly runAt: number;
}

/** A signature line, parsed: its operands in order. */
export interface Signature {
  readonly text: string;
  readonly inputs: readonly Operand[];
  readonly outputs: readonly Operand[];
}

/** Extents by letter; a run `N..` binds `N` to the product of its axes. */
export type Dims = Readonly<Record<string, number>>;

/** What inference needs to know of an operand. */
export interface TensorSpec {
  readonly shape: Shape;
  readonly dtype: DType;
}

/** What may stand for a dtype: what moves values without computing with them takes more than floats. */
const SEVERAL: Readonly<Record<string, readonly DType[]>> = {
  float: ["f32", "f16"],
  number: ["f32", "f16", "i32", "u32"],
  any: ["f32", "f16", "i32", "u32", "u8"],
};

const OPERAND = /^(\w+)([?!]?)(?::(\w+))?\[([\w.,]*)\]$/;

function parseOperand(token: string, residual: boolean, text: string): Operand {
  const match = OPERAND.exec(token);
  if (!match) throw new SidenetError("T-SIGNATURE", `cannot read "${token}" in "${text}".`);
  const [, name = "", mark, dtype = "float", dims = ""] = match;
  const several = SEVERAL[dtype];
  const extents = dims === "" ? [] : dims.split(",");
  return {
    name,
    dtype: several ? null : (dtype as DType),
    accepts: several ?? [dtype as DType],
    optional: mark === "?",
    updated: mark === "!",
    residual,
    dims: extents,
    letters: extents.map((dim) => dim.replace("..", "")),
    runAt: extents.findIndex((dim) => dim.endsWith("..")),
  };
}

/** Throws `T-SIGNATURE` on a malformed line. */
export function parseSignature(text: string): Signature {
  const [left = "", right = ""] = text.split("->");
  const [primary = "", residuals = ""] = right.split("|");
  const read = (part: string, residual: boolean) =>
    part
      .split(" ")
      .filter((token) => token !== "")
      .map((token) => parseOperand(token, residual, text));
  return { text, inputs: read(left, false), outputs: [...read(primary, false), ...read(residuals, true)] };
}

interface Bindings {
  dims: Record<string, number>;
  runs: Record<string, Shape>;
}

function bindShape(operand: Operand, shape: Shape, bindings: Bindings): boolean {
  const { letters, runAt } = operand;
  const fixed = letters.length - (runAt < 0 ? 0 : 1);
  const runLength = shape.length - fixed;
  if (runLength < 0 || (runAt < 0 && runLength !== 0)) return false;
  let axis = 0;
  for (let i = 0; i < letters.length; i++) {
    const letter = letters[i];
    if (i === runAt) {
      const run = shape.length === runLength ? shape : shape.slice(axis, axis + runLength);
      axis += runLength;
      const bound = bindings.runs[letter];
      if (bound === undefined) {
        bindings.runs[letter] = run;
        bindings.dims[letter] = sizeOf(run);
      } else if (bound.length !== run.length || bound.some((extent, i) => extent !== run[i])) return false;
    } else {
      const extent = shape[axis++];
      if (bindings.dims[letter] === undefined) bindings.dims[letter] = extent;
      else if (bindings.dims[letter] !== extent) return false;
    }
  }
  return true;
}

/** "a[2,3] b[4,5]": what came, for messages. */
function describe(signature: Signature, inputs: readonly (TensorSpec | null)[]): string {
  return signature.inputs
    .map((operand, i) => {
      const spec = inputs[i];
      return spec ? `${operand.name}:${spec.dtype}${formatShape(spec.shape)}` : `${operand.name} left out`;
    })
    .join(" ");
}

/** Binds the inputs' extents to the letters. Throws `T-SHAPE` or `T-DTYPE`, with what came and what was wanted. */
export function bindInputs(
  op: string,
  signature: Signature,
  inputs: readonly (TensorSpec | null)[],
): { dims: Record<string, number>; runs: Record<string, Shape> } {
  const bindings: Bindings = { dims: {}, runs: {} };
  for (let i = 0; i < signature.inputs.length; i++) {
    const operand = signature.inputs[i];
    const spec = inputs[i] ?? null;
    if (spec === null) {
      if (operand.optional) continue;
      throw new SidenetError("T-SHAPE", `${op}: ${operand.name} is missing. Wanted ${signature.text}`);
    }
    if (!operand.accepts.includes(spec.dtype)) {
      throw new SidenetError(
        "T-DTYPE",
        `${op}: ${operand.name} is ${spec.dtype}, wanted ${operand.accepts.join(" or ")} (${signature.text}).`,
      );
    }
    if (!bindShape(operand, spec.shape, bindings)) {
      throw new SidenetError(
        "T-SHAPE",
        `${op}: got ${describe(signature, inputs)}, which does not fit ${signature.text} at ${operand.name}. ` +
          "Check which operand has the other layout, or belongs to another layer.",
      );
    }
  }
  return bindings;
}

/** Shape and dtype of an output whose letters are all bound. */
export function outputSpec(
  operand: Operand,
  bindings: { dims: Record<string, number>; runs: Record<string, Shape> },
  elem: DType,
): TensorSpec {
  const { letters, runAt } = operand;
  if (runAt === 0 && letters.length === 1) {
    return { shape: bindings.runs[letters[0]] ?? [], dtype: operand.dtype ?? elem };
  }
  const shape: number[] = [];
  for (let i = 0; i < letters.length; i++) {
    if (i === runAt) shape.push(...(bindings.runs[letters[i]] ?? []));
    else shape.push(bindings.dims[letters[i]] ?? Number.NaN);
  }
  return { shape, dtype: operand.dtype ?? elem };
}

// Type level: only names and marks are read, so an editor pays for a short split and nothing else.

type Split<S extends string> = S extends `${infer Head} ${infer Tail}`
  ? [...(Head extends "" ? [] : [Head]), ...Split<Tail>]
  : S extends ""
    ? []
    : [S];
type Left<S extends string> = S extends `${infer L}->${string}` ? Split<L> : never;
type Right<S extends string> = S extends `${string}->${infer R}` ? R : never;
type Primary<S extends string> = Right<S> extends `${infer P}|${string}` ? Split<P> : Split<Right<S>>;
type Residual<S extends string> = Right<S> extends `${string}|${infer R}` ? Split<R> : [];

/** Operand name of a token such as `gain?[C]`. */
type NameOf<Token> = Token extends `${infer Name}[${string}`
  ? Name extends `${infer Bare}:${string}`
    ? StripMark<Bare>
    : StripMark<Name>
  : never;
type StripMark<Name extends string> = Name extends `${infer Bare}?`
  ? Bare
  : Name extends `${infer Bare}!`
    ? Bare
    : Name;

type IsOptional<Token> = Token extends `${string}?[${string}` | `${string}?:${string}` ? true : false;

/** Argument tuple: a tensor per input; trailing optional inputs may be left out. */
export type InputArgs<Sig extends string, T> = ArgsOf<Left<Sig>, T>;
type ArgsOf<Tokens, T> = Tokens extends [infer Head, ...infer Tail]
  ? IsOptional<Head> extends true
    ? [input?: T | null, ...ArgsOf<Tail, T>]
    : [input: T, ...ArgsOf<Tail, T>]
  : [];

/** What inference knows of the inputs, in order; null for an optional one that was left out. */
export type InputSpecs<Sig extends string> = string extends Sig
  ? readonly (TensorSpec | null)[]
  : SpecsOf<Left<Sig>>;
type SpecsOf<Tokens> = Tokens extends [infer Head, ...infer Tail]
  ? [IsOptional<Head> extends true ? TensorSpec | null : TensorSpec, ...SpecsOf<Tail>]
  : [];

export type InputNames<Sig extends string> = NameOf<Left<Sig>[number]>;
export type OutputNames<Sig extends string> = NameOf<Primary<Sig>[number]> | NameOf<Residual<Sig>[number]>;

/** One output: the tensor. Several: a tuple. None (an update in place): void. */
export type ResultOf<Sig extends string, T> = Outputs<Primary<Sig>, T>;
// Over a type parameter, so that a tuple maps to a tuple and not to an object with an array's methods.
type Outputs<Tokens extends readonly string[], T> = Tokens extends []
  ? void
  : Tokens extends [string]
    ? T
    : { [K in keyof Tokens]: T };
