/**
 * Signatures: one line that is the shape rule, the argument list and the error text of an op.
 *
 *   "x[N..,C] gain?[C] -> y[N..,C] | rstd:f32[N..]"
 *
 * - `x[N..,C]`   an input; `C` binds one extent, `N..` (at most one in a shape) any number of axes, product N
 * - `gain?[C]`   is optional              - `p![N..]`      updated in place
 * - `ids:i32[N]` has that dtype; `x:number[N]` any but u8, `x:any[N]` any; without a dtype an input is f32 or f16, an output
 *   has the dtype of the first such input
 * - `->` precedes the outputs, `|` the residuals: outputs for the backward pass, made only on request
 */
import type { DType } from "./dtype.ts";
import { SidenetError } from "./errors.ts";
import { formatShape, type Shape, sameShape, sizeOf } from "./shape.ts";

/** One operand of a signature line. */
export interface Operand {
  readonly name: string;
  /** Its dtype, or null if it accepts several. */
  readonly dtype: DType | null;
  readonly accepts: readonly DType[];
  readonly optional: boolean;
  readonly updated: boolean;
  readonly residual: boolean;
  /** Dimension letters; `N..` marks a run of axes. */
  readonly dims: readonly string[];
  /** The same letters without `..`, and the index of the run, or -1. */
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

/** Shape and dtype of an operand. */
export interface TensorSpec {
  readonly shape: Shape;
  readonly dtype: DType;
}

/** Names for several dtypes: ops that move values without computing with them accept more than floats. */
const SEVERAL: Readonly<Record<string, readonly DType[]>> = {
  float: ["f32", "f16"],
  number: ["f32", "f16", "i32", "u32"],
  any: ["f32", "f16", "i32", "u32", "u8"],
};

const EXTENT = /^[A-Za-z]\w*(\.\.)?$/;
const OPERAND = /^(\w+)([?!]?)(?::(\w+))?\[([\w.,]*)\]$/;

function parseOperand(token: string, residual: boolean, text: string): Operand {
  const match = OPERAND.exec(token);
  if (!match) throw new SidenetError("T-SIGNATURE", `cannot read "${token}" in "${text}".`);
  const [, name = "", mark, dtype = "float", dims = ""] = match;
  const several = SEVERAL[dtype];
  const extents = dims === "" ? [] : dims.split(",");
  const unnamed = extents.find((dim) => !EXTENT.test(dim));
  if (unnamed !== undefined) {
    throw new SidenetError(
      "T-SIGNATURE",
      `"${unnamed}" of "${token}" in "${text}" is no letter. Name the extent, and let \`check\` say what it has to be.`,
    );
  }
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

/** Extents by letter, and the axes of a run by its letter. */
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
      } else if (!sameShape(bound, run)) return false;
    } else {
      const extent = shape[axis++];
      if (bindings.dims[letter] === undefined) bindings.dims[letter] = extent;
      else if (bindings.dims[letter] !== extent) return false;
    }
  }
  return true;
}

/** An operand with the extents that its letters are bound to: "w[O, I=640]", with a run of axes as "N=[2, 3]". */
export function formatOperand({ name, letters, runAt }: Operand, { dims, runs }: Bindings): string {
  const axes = letters.map((letter, i) => {
    if (i === runAt) {
      const run = runs[letter];
      if (run === undefined) return `${letter}..`;
      return `${letter}=${run.length === 1 ? run[0] : formatShape(run)}`;
    }
    return dims[letter] === undefined ? letter : `${letter}=${dims[letter]}`;
  });
  return `${name}[${axes.join(", ")}]`;
}

/** The error for input `at`, the first whose shape contradicts the signature or the inputs before it. */
function refuseShape(
  op: string,
  signature: Signature,
  inputs: readonly (TensorSpec | null)[],
  at: number,
): SidenetError {
  const operand = signature.inputs[at];
  const { shape, dtype } = inputs[at]!;
  const bindings: Bindings = { dims: {}, runs: {} };
  const bound = signature.inputs.slice(0, at).filter((earlier, i) => {
    const spec = inputs[i];
    return spec && bindShape(earlier, spec.shape, bindings);
  });
  const binding = bound.filter(({ letters }) => letters.some((letter) => operand.letters.includes(letter)));
  const wanted = formatOperand(operand, bindings);
  const why =
    binding.length === 0
      ? `wanted ${wanted}`
      : `but ${binding.map((earlier) => formatOperand(earlier, bindings)).join(" and ")} ` +
        `${binding.length === 1 ? "needs" : "need"} ${wanted}`;
  return new SidenetError(
    "T-SHAPE",
    `${op}: ${operand.name} is ${dtype} ${formatShape(shape)}, ${why} (${signature.text}). ` +
      "Check which operand has the other layout, or belongs to another layer.",
  );
}

/** Binds the letters of a signature to the extents of the inputs. Throws `T-SHAPE` or `T-DTYPE`. */
export function bindInputs(
  op: string,
  signature: Signature,
  inputs: readonly (TensorSpec | null)[],
): Bindings {
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
    if (!bindShape(operand, spec.shape, bindings)) throw refuseShape(op, signature, inputs, i);
  }
  return bindings;
}

/**
 * Binds the letters of outputs to the extents that `infer` found. Throws `T-SIGNATURE` where these are not those of the signature.
 */
export function bindOutputs(
  op: string,
  { outputs, text }: Signature,
  specs: readonly TensorSpec[],
  bindings: Bindings,
): void {
  for (const [i, operand] of outputs.entries()) {
    const spec = specs[i];
    if (!spec || bindShape(operand, spec.shape, bindings)) continue;
    const made = `${operand.name} ${formatShape(spec.shape)}`;
    throw new SidenetError(
      "T-SIGNATURE",
      `${op}: infer made ${made}, wanted ${formatOperand(operand, bindings)} (${text}).`,
    );
  }
}

/** Shape and dtype of an output, from bound letters. */
export function outputSpec(operand: Operand, bindings: Bindings, elem: DType): TensorSpec {
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

// Type level: only names and the signs ? and ! are parsed, which keeps editors fast.

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

/**
 * Extents by letter: those that inputs and outputs always bind, and by the index signature those that `infer` adds or an optional
 * input binds. Of any signature they are any, so that every row is an `AnyOpRow`.
 */
export type DimsOf<Sig extends string> = InputDimsOf<Sig> & {
  readonly [_ in BoundLetter<(Primary<Sig> | Residual<Sig>)[number]>]: number;
};
/** `DimsOf`, but for letters that outputs alone have. */
export type InputDimsOf<Sig extends string> = unknown extends Sig
  ? // biome-ignore lint/suspicious/noExplicitAny: see above
    any
  : Dims & { readonly [_ in BoundLetter<Left<Sig>[number]>]: number };
type BoundLetter<Token> = Token extends `${string}[${infer Extents}]`
  ? IsOptional<Token> extends true
    ? never
    : Letters<Extents>
  : never;
type Letters<Extents extends string> = Extents extends `${infer Head},${infer Tail}`
  ? Letter<Head> | Letters<Tail>
  : Letter<Extents>;
type Letter<Extent extends string> = Extent extends `${infer Run}..` ? Run : Extent;

/** Argument tuple: a tensor per input; trailing optional inputs may be left out. */
export type InputArgs<Sig extends string, T> = ArgsOf<Left<Sig>, T>;
type ArgsOf<Tokens, T> = Tokens extends [infer Head, ...infer Tail]
  ? IsOptional<Head> extends true
    ? [input?: T | null, ...ArgsOf<Tail, T>]
    : [input: T, ...ArgsOf<Tail, T>]
  : [];

/** Specs of the inputs in order; null for an absent optional input. */
export type InputSpecs<Sig extends string> = string extends Sig
  ? readonly (TensorSpec | null)[]
  : SpecsOf<Left<Sig>>;
type SpecsOf<Tokens> = Tokens extends [infer Head, ...infer Tail]
  ? [IsOptional<Head> extends true ? TensorSpec | null : TensorSpec, ...SpecsOf<Tail>]
  : [];

/** Names of the operands that a call may lack: optional inputs and residuals. */
export type NullableNames<Sig extends string> =
  | OptionalName<Left<Sig>[number]>
  | NameOf<Residual<Sig>[number]>;
type OptionalName<Token> = Token extends unknown
  ? IsOptional<Token> extends true
    ? NameOf<Token>
    : never
  : never;

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
