/** How work is cut into tasks: by these sizes alone, so that results do not depend on the number of threads. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, i32 } from "../assembler/instructions.ts";

/** Elements of a task of an elementwise kernel. */
export const CHUNK = 16384;

/** Elements of one partial sum of a reduction to a scalar. */
export const SUM_CHUNK = 65536;
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

export type Pointers<K extends string> = Readonly<Record<K, Local<"i32">>>;

/** Moves the pointers to the task's chunk of `size` words, and returns its number of elements. */
export function startChunk<K extends string>(
  f: FunctionBuilder,
  task: Expr<"i32">,
  n: Local<"i32">,
  pointers: Pointers<K>,
  size = CHUNK,
): Local<"i32"> {
  const first = f.i32(i32.mul(task, size));
  for (const pointer of Object.values<Local<"i32">>(pointers)) {
    f.set(pointer, i32.add(pointer, i32.mul(first, 4)));
  }
  return f.i32(i32.min(f.i32(i32.sub(n, first)), size));
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
