/**
 * The op table. A row is one op: its shape rule, reference, kernel and test cases. Whatever works on all ops (devices, tapes,
 * property tests, docs) iterates over this object.
 */
import { LARGEST_F32 } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import type { AnyOpRow, NumberRange, OpMethod, OpsOf } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import * as activations from "./activations.ts";
import { attention, attentionBackwardKV, attentionBackwardQ } from "./attention.ts";
import { crossEntropy, crossEntropyBackward } from "./cross-entropy.ts";
import * as elementwise from "./elementwise.ts";
import { embedding, embeddingBackward, selectRows } from "./embedding.ts";
import * as extreme from "./extreme.ts";
import * as indexing from "./indexing.ts";
import { dequantize8, quantize8 } from "./int8-blocks.ts";
import * as layerNorms from "./layer-norm.ts";
import { cacheWrite, reshape, slice, sliceBackward } from "./layout.ts";
import { lmHeadLoss, lmHeadLossBackwardW } from "./lm-head.ts";
import { linear, matmul, matmulNT, matmulTN } from "./matmul.ts";
import { nf4Dequantize } from "./nf4.ts";
import { nf4Embedding, nf4HeadLoss } from "./nf4-embedding-head.ts";
import { nf4Linear, nf4LinearBackwardX } from "./nf4-linear.ts";
import { nf4Quantize, nf4QuantizePart, nf4QuantizeScales } from "./nf4-quantize.ts";
import { rmsNorm, rmsNormBackwardGain, rmsNormBackwardX } from "./norm.ts";
import { accumulate, adamw, clipFactor, sumSquares } from "./optimizer.ts";
import { adamw8, sgd } from "./optimizer-variants.ts";
import { dropout, normal, uniform } from "./random.ts";
import { broadcast, mean, sum } from "./reduce.ts";
import { rope } from "./rope.ts";
import { sampleLogits } from "./sampling.ts";
import { softmax, softmaxBackward } from "./softmax.ts";
import { concat, transpose } from "./transpose.ts";

/** All ops, one row each (docs/ops.md). */
export const opTable = {
  // Families whose files export nothing but rows.
  ...activations,
  ...elementwise,
  ...extreme,
  ...indexing,
  ...layerNorms,
  accumulate,
  adamw,
  adamw8,
  attention,
  attentionBackwardKV,
  attentionBackwardQ,
  broadcast,
  cacheWrite,
  clipFactor,
  concat,
  crossEntropy,
  crossEntropyBackward,
  dropout,
  embedding,
  embeddingBackward,
  linear,
  dequantize8,
  lmHeadLoss,
  lmHeadLossBackwardW,
  matmul,
  matmulNT,
  matmulTN,
  mean,
  nf4Dequantize,
  nf4Embedding,
  nf4HeadLoss,
  nf4Linear,
  nf4LinearBackwardX,
  nf4Quantize,
  nf4QuantizePart,
  nf4QuantizeScales,
  quantize8,
  normal,
  reshape,
  rmsNorm,
  rmsNormBackwardGain,
  rmsNormBackwardX,
  rope,
  sampleLogits,
  selectRows,
  sgd,
  slice,
  sliceBackward,
  softmax,
  softmaxBackward,
  sum,
  sumSquares,
  transpose,
  uniform,
};

/** The type of the op table, from which `Ops` is derived. */
export type OpTable = typeof opTable;
/** The name of an op. */
export type OpName = keyof OpTable;

/** An op: its name in the table, or a row that is not in it. */
export type OpOrName = OpName | AnyOpRow;

/** One method for each row of the op table, and `call` for rows outside it. */
export interface Ops extends OpsOf<OpTable> {
  /**
   * Runs a row that `defineOp` made, with the arguments and the result that it would have as a method. Throws `T-OP` for a
   * row that has the name of another op.
   */
  call<R extends AnyOpRow>(row: R, ...args: Parameters<OpMethod<R>>): ReturnType<OpMethod<R>>;
}

/** Names of all ops, in the table's order. */
export const opNames = Object.keys(opTable) as OpName[];

/** Whether the table has this row (not just its name). */
export const isInTable = (row: AnyOpRow): boolean => (opTable as Record<string, AnyOpRow>)[row.name] === row;

/** The row of an op. Throws `T-OP` for an unknown name, and for a row outside the table with the name of a row inside. */
export function rowOf(op: OpOrName): AnyOpRow {
  const name = typeof op === "string" ? op : op.name;
  const known: AnyOpRow | undefined = opTable[name as OpName];
  if (typeof op !== "string") {
    if (known === undefined || known === op) return op;
    throw new SidenetError("T-OP", `the op table has another op "${name}". Give this one a name of its own.`);
  }
  if (known === undefined) throw new SidenetError("T-OP", `"${name}" is not in the op table.`);
  return known;
}

/** Runs one op and returns its outputs by name; `buildOps` ignores residuals among them. */
export type Execute = (
  row: AnyOpRow,
  inputs: readonly (Tensor | null | undefined)[],
  attrs: object,
) => Readonly<Record<string, Tensor>>;

function refuseName({ name, attrs: defaults }: AnyOpRow, key: string): SidenetError {
  const known = Object.keys(defaults).join(", ");
  return new SidenetError(
    "T-ATTR",
    `${name} has no attribute "${key}"; ${known ? `it has ${known}` : "it takes none, and no further operand"}.`,
  );
}

function refuseAttrs({ name, attrs: defaults }: AnyOpRow, attrs: unknown): SidenetError {
  const [example] = Object.entries(defaults).map(
    ([key, value]) => ` such as { ${key}: ${JSON.stringify(value)} }`,
  );
  const wanted = `an object${example ?? ""}`;
  return new SidenetError("T-ATTR", `${name}: attributes are ${JSON.stringify(attrs)}, wanted ${wanted}.`);
}

const typeName = (value: unknown): string =>
  value === null ? "null" : Array.isArray(value) ? "array" : typeof value;

/** The types that an attribute may have: that of its default; a default of null means an optional number. */
function typesOf({ attrs, nullable }: AnyOpRow, key: string): string[] {
  if (attrs[key] === null) return ["number", "null"];
  return [typeName(attrs[key]), ...(nullable?.includes(key) ? ["null"] : [])];
}

/** Throws `T-ATTR` for a number out of the attribute's range. */
function checkRange({ name, ranges }: AnyOpRow, key: string, value: number): void {
  const {
    least = -LARGEST_F32,
    most = LARGEST_F32,
    whole = false,
    nan = false,
  }: NumberRange = ranges?.[key] ?? {};
  if (nan && Number.isNaN(value)) return;
  if (value >= least && value <= most && !(whole && !Number.isInteger(value))) return;
  const kind = whole ? "a whole number" : Number.isFinite(most) ? "a finite number" : "a number";
  const limits =
    most < LARGEST_F32 ? ` from ${least} to ${most}` : least > -LARGEST_F32 ? ` >= ${least}` : "";
  throw new SidenetError("T-ATTR", `${name}: ${key} is ${value}, wanted ${kind}${limits}.`);
}

/**
 * The attributes that a caller set; undefined ones keep their defaults. Throws `T-ATTR` for anything but an object, for an unknown
 * attribute, or one of another type than its default, since JavaScript would compute with "2", true or null, or out of its range.
 */
function givenAttrs(row: AnyOpRow, attrs: Readonly<Record<string, unknown>>): object {
  if (typeof attrs !== "object") throw refuseAttrs(row, attrs);
  let given = attrs;
  for (const key in attrs) {
    if (!(key in row.attrs)) throw refuseName(row, key);
    if (attrs[key] !== undefined) {
      const wanted = typesOf(row, key);
      if (wanted.includes(typeName(attrs[key]))) {
        if (typeof attrs[key] === "number") checkRange(row, key, attrs[key]);
        continue;
      }
      const value = JSON.stringify(attrs[key]);
      throw new SidenetError(
        "T-ATTR",
        `${row.name}: ${key} is ${value}, wanted a value of type ${wanted.join(" or ")}.`,
      );
    }
    const { [key]: _, ...others } = given;
    given = others;
  }
  return given;
}

/** The method of a row, for any executor. */
function methodOf(row: AnyOpRow): (execute: Execute, args: readonly unknown[]) => unknown {
  const arity = row.signature.inputs.length;
  const primary = row.signature.outputs.flatMap((output) => (output.residual ? [] : output.name));
  return (execute, args) => {
    const attrs = givenAttrs(row, (args[arity] ?? {}) as Record<string, unknown>);
    const outputs = execute(row, args.slice(0, arity) as (Tensor | null | undefined)[], attrs);
    if (primary.length === 1) return outputs[primary[0]];
    return primary.length === 0 ? undefined : primary.map((output) => outputs[output]);
  };
}

/** Made once: each tape and each checkpoint builds an `Ops` of its own. */
const methods = opNames.map((name) => [name, methodOf(opTable[name])] as const);

/**
 * Builds an `Ops` over an executor, such as a device or a tape. A method returns the one output of its op, an array of several, or
 * nothing if the op works in place. With a `target`, the methods are added to it.
 */
export function buildOps(execute: Execute, target: object = {}): Ops {
  const ops = target as Record<string, unknown>;
  ops.call = (row: AnyOpRow, ...args: unknown[]) => methodOf(rowOf(row))(execute, args);
  for (const [name, run] of methods) ops[name] = (...args: unknown[]) => run(execute, args);
  return target as Ops;
}
