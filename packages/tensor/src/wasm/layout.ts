/**
 * The layout of linear memory before the tensors. The first bytes are never written: address 0 stands for null, and reads as 0.
 */

/** Words by which threads synchronize (threads.ts); those that several threads write have a cache line of their own. */
export const CONTROL = {
  /** The number of dispatches so far; idle threads wait on it. */
  generation: 1024,
  /** The flag OPEN, plus the number of threads that have joined the dispatch. */
  state: 1088,
  /** How many of the joined threads have left again. */
  left: 1152,
  /** The next task to take. */
  next: 1216,
  /** The number of sleeping threads. */
  sleepers: 1280,
  /** 1 while the caller sleeps until all threads have left. */
  callerSleeps: 1344,
  /** The kernel and the number of tasks of the dispatch: written before it opens, read after joining. */
  kernel: 1408,
  tasks: 1412,
  /** Not 0 tells the threads to end. */
  quit: 1416,
} as const;

/** The arguments of the dispatch, one word each. */
export const ARGS = 2048;

/** The scratch of each thread, one after the other. */
export const SCRATCH = 65536;
export const SCRATCH_BYTES = 2 ** 20;

/** The first address of tensors. */
export const heapStart = (threads: number): number => SCRATCH + threads * SCRATCH_BYTES;
