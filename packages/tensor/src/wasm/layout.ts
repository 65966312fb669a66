/** What stands where at the beginning of linear memory; tensors come after. Address 0 is nothing: it stands for null. */

/** The words through which threads meet (threads.ts), a cache line each where several write. */
export const CONTROL = {
  /** Counts dispatches; threads sleep on it. */
  generation: 1024,
  /** OPEN, and how many threads have joined the dispatch. */
  state: 1088,
  /** How many of those have left. */
  left: 1152,
  /** The next task nobody has taken. */
  next: 1216,
  /** Sleeping threads. */
  sleepers: 1280,
  /** The caller sleeps until all have left. */
  callerSleeps: 1344,
  /** The dispatch: kernel, number of tasks. Written before it opens, read by who has joined. */
  kernel: 1408,
  tasks: 1412,
  /** Not 0: threads end. */
  quit: 1416,
} as const;

/** Arguments of the dispatch, a word each. */
export const ARGS = 2048;

/** Each thread's own memory, one after the other. */
export const SCRATCH = 65536;
export const SCRATCH_BYTES = 2 ** 20;

/** The first address of tensors. */
export const heapStart = (threads: number): number => SCRATCH + threads * SCRATCH_BYTES;
