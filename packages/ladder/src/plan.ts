/**
 * What a training step will take, before anyone pays for it: the trainer itself on the `meta` device, whose kernels do
 * nothing. So a plan is not a formula, and cannot drift from the code.
 */
import { type BytesByCategory, type DeviceProfile, MetaDevice, SidenetError } from "@sidenet/tensor";
import { type BaseStorage, emptyWeights } from "./base-storage.ts";
import { contextLimit, type ModelConfig } from "./config.ts";
import { Decoder } from "./decoder.ts";
import { type MethodOptions, makeAdapter } from "./method.ts";
import { type LabeledBatch, type MemoryOptions, Trainer } from "./trainer.ts";

export interface PlanOptions {
  readonly method: MethodOptions;
  readonly storage: BaseStorage;
  readonly memory: MemoryOptions;
  readonly batchSize: number;
  /** [T] Tokens of each row. */
  readonly context: number;
}

/** A tensor that one binding of some adapters does not hold. */
export interface LargeBuffer {
  readonly label: string;
  readonly sizeBytes: number;
}

export interface Plan {
  readonly trainableParameters: number;
  readonly peakBytes: number;
  /** What is live at the peak; its sum is the peak. */
  readonly peakBytesByCategory: BytesByCategory;
  /** Floating-point operations of one step, forward and backward. */
  readonly flops: number;
  /** Every buffer of more than 128 MiB, the largest of each label, the largest first. */
  readonly largeBuffers: readonly LargeBuffer[];
}

/** Sizes of bindings that adapters offer, in bytes: WebGPU's least, and what GPUs have. */
export const BINDING_LIMITS = [2 ** 27, 2 ** 30, 2 ** 31, 2 ** 32] as const;

/** A batch of this shape, every position seen and scored: the values do not matter where nothing is computed. */
export function plannedBatch(batchSize: number, length: number): LabeledBatch {
  const size = batchSize * length;
  return {
    inputIds: new Int32Array(size),
    labels: new Int32Array(size),
    attentionMask: new Uint8Array(size).fill(1),
    batchSize,
    length,
  };
}

/**
 * One training step of this model from its configuration alone. `profile` is the adapter to stand in for.
 * Throws what `makeAdapter` throws, `L-CONTEXT`, and `T-TOO-LARGE` where the adapter could not hold a tensor.
 */
export function planStep(
  config: ModelConfig,
  options: PlanOptions,
  profile: Partial<DeviceProfile> = {},
): Plan {
  const device = new MetaDevice(profile);
  const large = new Map<string, number>();
  using decoder = new Decoder(config, emptyWeights(device, config, options.storage));
  using adapter = makeAdapter(options.method, decoder, "planned");
  using trainer = new Trainer(decoder, adapter, { ...options.memory, learningRate: () => 0 });
  const note = ({ label, sizeBytes }: LargeBuffer) => {
    if (sizeBytes > BINDING_LIMITS[0]) large.set(label, Math.max(large.get(label) ?? 0, sizeBytes));
  };
  for (const allocation of device.memory.allocations()) note(allocation);
  device.memory.onReserve = note;
  device.memory.resetPeak();
  const before = device.flops;
  const { loss, norm } = trainer.dispatchStep(plannedBatch(options.batchSize, options.context));
  loss.dispose();
  norm.dispose();
  const { peakBytes, byCategory } = device.memory.peak(0);
  return {
    trainableParameters: adapter.parameters.count,
    peakBytes,
    peakBytesByCategory: byCategory,
    flops: device.flops - before,
    largeBuffers: [...large]
      .map(([label, sizeBytes]) => ({ label, sizeBytes }))
      .sort((a, b) => b.sizeBytes - a.sizeBytes),
  };
}

/** Contexts are searched in steps of this many tokens. */
const CONTEXT_STEP = 64;

/**
 * The longest context, a multiple of 64 up to the model's own, whose step takes at most `memoryBytes`, with its plan; null
 * where even 64 tokens do not fit.
 */
export function longestContext(
  config: ModelConfig,
  options: Omit<PlanOptions, "context">,
  memoryBytes: number,
  profile: Partial<DeviceProfile> = {},
): { context: number; plan: Plan } | null {
  const planAt = (steps: number): Plan | null => {
    try {
      const plan = planStep(config, { ...options, context: steps * CONTEXT_STEP }, profile);
      return plan.peakBytes <= memoryBytes ? plan : null;
    } catch (error) {
      if (error instanceof SidenetError && error.code === "T-TOO-LARGE") return null; // a tensor passes the adapter's limits
      throw error;
    }
  };
  let best: { context: number; plan: Plan } | null = null;
  let fits = 0;
  let tooMany = Math.floor(contextLimit(config) / CONTEXT_STEP) + 1;
  while (tooMany - fits > 1) {
    const middle: number = best
      ? Math.floor((fits + tooMany) / 2)
      : Math.min(32, Math.floor((fits + tooMany) / 2));
    const plan = planAt(middle);
    if (plan) {
      fits = middle;
      best = { context: middle * CONTEXT_STEP, plan };
    } else tooMany = middle;
  }
  return best;
}
