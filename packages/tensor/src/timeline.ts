import type { Device } from "./device.ts";
import type { BytesByCategory } from "./memory.ts";

/** Memory right after an op was called. */
export interface MemorySample {
  readonly op: string;
  /** Labels of the open scopes, outermost first. */
  readonly scopes: readonly string[];
  readonly liveBytes: number;
  readonly live: BytesByCategory;
  /** Peak of live bytes since the previous sample, including the workspace of the op. */
  readonly highestBytes: number;
  /** The same by category. */
  readonly highest: BytesByCategory;
}

/**
 * Records live memory after each op until the returned function is called, which returns the samples in order. The largest
 * `highestBytes` among them is the peak of that time.
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
