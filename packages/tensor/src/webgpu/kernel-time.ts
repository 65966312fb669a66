/** GPU time of one kernel while profiling was on. */
export interface KernelTime {
  readonly kernel: string;
  readonly dispatches: number;
  readonly elapsedMs: number;
}
