/** WebAssembly with every number of threads that matters, with and without fused multiply-add. */
import { openNodeWasm } from "@sidenet/tensor/node";

interface Configuration {
  readonly threads: number;
  readonly relaxedSimd: boolean;
}

/** Four are more than many a machine has cores. */
export const THREADS = [1, 2, 4] as const;

export const CONFIGURATIONS: readonly Configuration[] = [true, false].flatMap((relaxedSimd) =>
  THREADS.map((threads) => ({ threads, relaxedSimd })),
);

export const nameOf = ({ threads, relaxedSimd }: Configuration): string =>
  `${threads} threads, multiply-add ${relaxedSimd ? "fused" : "in two steps"}`;

export const open = (configuration: Configuration) => openNodeWasm({ poison: true, ...configuration });
