import type { Device } from "./device.ts";
import type { BytesByCategory } from "./memory.ts";

/** Memory just after an op has been asked for. */
export interface MemorySample {
  readonly op: string;
  /** Labels of the scopes that were open, the outermost first. */
  readonly scopes: readonly string[];
  readonly liveBytes: number;
  readonly live: BytesByCategory;
  /** The most that was live since the sample before, workspace of the op included. */
  readonly highestBytes: number;
  /** What that was. */
  readonly highest: BytesByCategory;
}

/**
 * Notes what is live after each op from now on, until the function that it returns is called, which gives the samples in
 * order. Their largest `highestBytes` is the peak of that time.
 */
export function recordTimeline(device: Device): () => MemorySample[] {
  const { memory } = device;
  const samples: MemorySample[] = [];
  const before = device.onOp;
  memory.takeHighest();
  device.onOp = (op) => {
    before?.(op);
    const { bytes: highestBytes, byCategory: highest } = memory.takeHighest();
    samples.push({
      op,
      scopes: device.scopeLabels,
      liveBytes: memory.liveBytes,
      live: memory.live,
      highestBytes,
      highest,
    });
  };
  return () => {
    device.onOp = before;
    return samples;
  };
}
