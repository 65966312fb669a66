/** The tasks of a call, and its rough time, by which short calls stay on the calling thread. */
import type { Tasks } from "../context.ts";
import { CHUNK } from "./tasks.ts";

/** Elements that a thread processes in a nanosecond: limited by memory, or by an exponential. */
export const SIMPLE_PER_NS = 1.5;
export const EXP_PER_NS = 0.6;

/** Tasks of an elementwise kernel. */
export const chunks = (size: number, perNs = SIMPLE_PER_NS): Tasks => ({
  tasks: Math.ceil(size / CHUNK),
  work: size / perNs,
});

/** A call of one task. */
export const alone = (work: number): Tasks => ({ tasks: 1, work });

/** Elements of a task of a kernel over rows, roughly. */
const ROWS_SIZE = 8192;

/** Rows of a task of a kernel over rows, and the tasks. */
export function rowTasks(n: number, c: number, perNs = SIMPLE_PER_NS): { rows: number; split: Tasks } {
  const rows = Math.max(1, Math.floor(ROWS_SIZE / c));
  return { rows, split: { tasks: Math.ceil(n / rows), work: (n * c) / perNs } };
}
