/** How work is cut into tasks: by these sizes alone, so that results do not depend on the number of threads. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, i32 } from "../assembler/instructions.ts";
import { type Access, advance, forVectors, type Pointer } from "./vectors.ts";

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

/** The address of row `row` of a matrix whose rows are `c` words of four bytes. */
export const rowAt = (base: Local<"i32">, row: Expr<"i32">, c: Local<"i32">): Expr<"i32"> =>
  i32.add(base, i32.mul(i32.mul(row, c), 4));

/** The address of word `index`. */
export const wordAt = (base: Local<"i32">, index: Expr<"i32">): Expr<"i32"> =>
  i32.add(base, i32.mul(index, 4));

/** Moves the pointers to the task's chunk of n elements, and returns the number of elements in it. */
export function startChunk(
  f: FunctionBuilder,
  task: Expr<"i32">,
  n: Local<"i32">,
  pointers: readonly Pointer[],
): Local<"i32"> {
  const first = f.i32(i32.mul(task, CHUNK));
  advance(f, pointers, first);
  return f.i32(i32.min(f.i32(i32.sub(n, first)), CHUNK));
}

/** Runs the body over the task's chunk of n elements. */
export function forChunk(
  f: FunctionBuilder,
  task: Expr<"i32">,
  n: Local<"i32">,
  pointers: readonly Pointer[],
  body: (access: Access) => void,
): void {
  forVectors(f, startChunk(f, task, n, pointers), pointers, body);
}

/** Runs the body for each row of the task. */
export function forRows(
  f: FunctionBuilder,
  task: Expr<"i32">,
  { rows, n }: { readonly rows: Local<"i32">; readonly n: Local<"i32"> },
  body: (row: Local<"i32">) => void,
): void {
  const row = f.i32();
  const first = f.i32(i32.mul(task, rows));
  const end = f.i32(i32.min(n, f.i32(i32.add(first, rows))));
  f.for(row, first, end, 1, () => body(row));
}
