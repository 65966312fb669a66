/** The tasks of a call, and its rough time, by which short calls stay on the calling thread. */
import type { Tensor } from "../../tensor.ts";
import type { Tasks } from "../context.ts";
import { CHUNK } from "./tasks.ts";

/** Elements that a thread processes in a nanosecond: limited by memory, or by an exponential. */
export const SIMPLE_PER_NS = 1.5;
export const EXP_PER_NS = 0.6;

export function isF32(io: Readonly<Record<string, Tensor | null>>): boolean {
  for (const name in io) {
    const tensor = io[name];
    if (tensor !== null && tensor.dtype !== "f32") return false;
  }
  return true;
}

/** Tasks of an elementwise kernel. */
export const chunks = (size: number, perNs = SIMPLE_PER_NS): Tasks => ({
  tasks: Math.ceil(size / CHUNK),
  work: size / perNs,
});

/** Elements of a task of a kernel over rows, roughly. */
const ROWS_SIZE = 8192;

/** Rows of a task of a kernel over rows, and the tasks. */
export function rowTasks(n: number, c: number, perNs = SIMPLE_PER_NS): { rows: number; split: Tasks } {
  const rows = Math.max(1, Math.floor(ROWS_SIZE / Math.max(c, 1)));
  return { rows, split: { tasks: Math.ceil(n / rows), work: (n * c) / perNs } };
}
