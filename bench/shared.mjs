// What several benchmarks use.

import { readFileSync } from "node:fs";
import { decoderParameters, denseMatrix } from "@sidenet/ladder";
import { ParamStore } from "@sidenet/tensor";

export const median = (list) => {
  const sorted = [...list].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

/** CPU time of this thread in milliseconds; NaN where the system does not report it (it is Linux that does). */
export function threadCpuMs() {
  try {
    return Number(readFileSync("/proc/thread-self/schedstat", "utf8").split(" ")[0]) / 1e6;
  } catch {
    return Number.NaN;
  }
}

/** Weights in f32, dequantized from a store of NF4 weights, which is disposed. */
export function dequantize(config, quantized) {
  const dense = new ParamStore(quantized.device, "weights");
  for (const { name, shape } of decoderParameters(config))
    dense.add(name, denseMatrix(quantized, name, shape));
  quantized.dispose();
  return dense;
}
