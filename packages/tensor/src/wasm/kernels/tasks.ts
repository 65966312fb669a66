/** How work is cut into tasks: by these sizes alone, so that results do not depend on the number of threads. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, i32 } from "../assembler/instructions.ts";
import { at, type Body, forVectors, type Operand, startOf } from "./vectors.ts";

/** Elements of a task of an elementwise kernel. */
export const CHUNK = 16384;

/** Rows of a matrix in a task that packs its columns. */
export const PACK_STEPS = 64;
/** Keys (or queries) that stream past a panel of attention at a time, and those that a task packs: multiples of both `panelRows`, 5 and 6. */
export const STREAM = 360;
export const PACK_HEADS = 60;
/** Of a transpose: columns and rows of a unit of work, and the largest number of axes around these two; also of broadcasting. */
export const BAND = 32;
export const PART = 1024;
export const OUTER_AXES = 4;

/** Runs the body over the task's chunk of n elements. */
export function forChunk(
  f: FunctionBuilder,
  task: Expr<"i32">,
  n: Local<"i32">,
  operands: readonly Operand[],
  body: Body,
): void {
  const first = f.i32(i32.mul(task, CHUNK));
  const count = i32.min(f.i32(i32.sub(n, first)), CHUNK);
  const parts = operands.map((operand): Operand => {
    const [start, bytes] = startOf(operand);
    return [at(start, first, bytes), bytes];
  });
  forVectors(f, count, parts, body);
}

/** Runs the body for each row of the task. */
export function forRows(
  f: FunctionBuilder,
  task: Expr<"i32">,
  { rows, n }: { readonly rows: Local<"i32">; readonly n: Local<"i32"> },
  body: (row: Local<"i32">) => void,
): void {
  const first = f.i32(i32.mul(task, rows));
  const end = f.i32(i32.min(n, f.i32(i32.add(first, rows))));
  f.for(first, end, 1, body);
}
