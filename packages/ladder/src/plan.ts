/**
 * What a training step will take, before anyone pays for it: the trainer itself on the `meta` device, whose kernels do
 * nothing. So a plan is not a formula, and cannot drift from the code.
 */
import type { Optimizer } from "@sidenet/autograd";
import {
  type BytesByCategory,
  type Device,
  type DeviceProfile,
  type MemorySample,
  MetaDevice,
  type ParamStore,
  recordTimeline,
  SidenetError,
} from "@sidenet/tensor";
import { type Adapter, effectiveDepth } from "./adapter.ts";
import { type BaseStorage, emptyWeights } from "./base-storage.ts";
import type { LabeledBatch } from "./batch-loss.ts";
import { contextLimit, type ModelConfig } from "./config.ts";
import { Decoder } from "./decoder.ts";
import type { FlopsByOp } from "./flop-counts.ts";
import { type MethodOptions, makeAdapter } from "./method.ts";
import { type MemoryOptions, Trainer } from "./trainer.ts";

/** One training step of a method on a batch of full rows. */
export interface StepOptions {
  /** A method of this library by its options, or a function that makes an adapter of one's own. */
  readonly method: MethodOptions | ((decoder: Decoder) => Adapter);
  /** Makes the optimizer, as for a `Trainer`. Default: AdamW. */
  readonly optimizer?: (parameters: ParamStore) => Optimizer;
  readonly storage: BaseStorage;
  readonly memory: MemoryOptions;
  readonly batchSize: number;
  /** [T] Tokens of each row; may be more than the model was made for. */
  readonly context: number;
  /** Note memory after every op of the step. */
  readonly timeline?: boolean;
}

/** A step, and the adapter it is planned for. */
export interface PlanOptions extends StepOptions {
  /** The adapter to stand in for: its limits and kernels. Default: a discrete GPU with WebGPU's least limits. */
  readonly profile?: Partial<DeviceProfile>;
}

/** A tensor that one binding of some adapters does not hold. */
export interface LargeBuffer {
  readonly label: string;
  readonly sizeBytes: number;
}

/** What one training step takes. */
export interface Plan {
  readonly trainableParameters: number;
  /** Blocks on the longest way from tokens to logits. */
  readonly effectiveDepth: number;
  readonly peakBytes: number;
  /** What is live at the peak; its sum is the peak. */
  readonly peakBytesByCategory: BytesByCategory;
  /** The largest allocations that are live at the peak. */
  readonly largest: readonly LargeBuffer[];
  /** Live bytes when the step is over: what a model at rest takes. */
  readonly restingBytes: number;
  /** Floating-point operations of one step: forward, backward and update. */
  readonly flops: number;
  readonly flopsByOp: FlopsByOp;
  /** Tokens of one step. */
  readonly tokens: number;
  /** Every buffer of more than 128 MiB, the largest of each label, the largest first. */
  readonly largeBuffers: readonly LargeBuffer[];
  /** Empty unless asked for. */
  readonly timeline: readonly MemorySample[];
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

/** The same model for any context: what a step takes does not depend on what the model was trained for. */
const withoutContextLimit = (config: ModelConfig): ModelConfig => ({
  ...config,
  maxPositionEmbeddings: Number.MAX_SAFE_INTEGER,
  slidingWindow: null,
});

/** One training step of this model from its configuration alone: `measureStep` on `meta`, in the place of another device. */
export const planStep = (config: ModelConfig, options: PlanOptions): Plan =>
  measureStep(new MetaDevice(options.profile), config, options);

/**
 * One training step of a model of this configuration with weights of no particular values, on any device: what it takes
 * does not depend on values. Throws what `makeAdapter` throws, and `T-TOO-LARGE` or `T-OUT-OF-MEMORY` where the device
 * cannot hold it.
 */
export function measureStep(device: Device, config: ModelConfig, options: StepOptions): Plan {
  const { memory } = device;
  const large = new Map<string, number>();
  const before = memory.onReserve;
  memory.onReserve = ({ label, sizeBytes }) => {
    refuseLarge(label, sizeBytes, device.profile.maxBufferBytes);
    if (sizeBytes > BINDING_LIMITS[0]) large.set(label, Math.max(large.get(label) ?? 0, sizeBytes));
  };
  try {
    const model = withoutContextLimit(config);
    using decoder = new Decoder(model, emptyWeights(device, model, options.storage));
    const { method, optimizer } = options;
    using adapter = typeof method === "function" ? method(decoder) : makeAdapter(method, decoder, "planned");
    using trainer = new Trainer(decoder, adapter, {
      ...options.memory,
      learningRate: () => 0,
      ...(optimizer && { optimizer }),
    });
    memory.resetPeak();
    const flops = device.flops;
    const stop = options.timeline ? recordTimeline(device) : () => [];
    const { loss, norm } = trainer.dispatchStep(plannedBatch(options.batchSize, options.context));
    const timeline = stop();
    loss.dispose();
    norm.dispose();
    const { peakBytes, byCategory, largest } = memory.peak();
    return {
      trainableParameters: adapter.parameters.count,
      effectiveDepth: effectiveDepth(adapter, config),
      peakBytes,
      peakBytesByCategory: byCategory,
      largest,
      restingBytes: memory.liveBytes,
      flops: device.flops - flops,
      flopsByOp: trainer.flops.byOp,
      tokens: options.batchSize * options.context,
      largeBuffers: [...large]
        .map(([label, sizeBytes]) => ({ label, sizeBytes }))
        .sort((a, b) => b.sizeBytes - a.sizeBytes),
      timeline,
    };
  } finally {
    memory.onReserve = before;
  }
}

/** Throws `T-TOO-LARGE`. */
function refuseLarge(label: string, sizeBytes: number, maxBufferBytes: number): void {
  if (sizeBytes <= maxBufferBytes) return;
  throw new SidenetError(
    "T-TOO-LARGE",
    `${label} wants a buffer of ${sizeBytes} bytes, this adapter allows ${maxBufferBytes}. Take smaller weights ` +
      "(--dtype f16, --quantize-ends) or an adapter with larger buffers.",
  );
}

/** Contexts are searched in steps of this many tokens. */
const CONTEXT_STEP = 64;
/** Longer contexts are not searched for. */
const MAX_TOKENS = 2 ** 20;

/** What a budget of memory holds. */
export interface LongestContext {
  /** The longest context, a multiple of 64 tokens, whose step fits; 0 where none does. At most 1,048,576. */
  readonly context: number;
  /** The same, but at most the model's own context. */
  readonly usable: number;
  /** The step at `usable` tokens; null where nothing fits. */
  readonly plan: Plan | null;
  /** Where nothing fits, the peak at 64 tokens, Infinity for a model that the device cannot hold; else null. */
  readonly leastBytes: number | null;
}

/** Finds the longest context whose step takes at most `memoryBytes`. Throws as `planStep` does. */
export function longestContext(
  config: ModelConfig,
  options: Omit<PlanOptions, "context" | "timeline">,
  memoryBytes: number,
): LongestContext {
  const plans = new Map<number, Plan>();
  const peakAt = (steps: number): number => {
    const context = steps * CONTEXT_STEP;
    try {
      const plan = planStep(config, { ...options, context });
      plans.set(context, plan);
      return plan.peakBytes;
    } catch (error) {
      if (error instanceof SidenetError && error.code === "T-TOO-LARGE") return Number.POSITIVE_INFINITY;
      throw error;
    }
  };
  const context = CONTEXT_STEP * largestWithin(memoryBytes, peakAt, MAX_TOKENS / CONTEXT_STEP);
  const usable = Math.min(context, contextLimit(config));
  if (usable === 0) return { context, usable, plan: null, leastBytes: peakAt(1) };
  const plan = plans.get(usable) ?? planStep(config, { ...options, context: usable });
  return { context, usable, plan, leastBytes: null };
}

/**
 * The largest n <= most with f(n) <= budget, or 0; f never falls. Peaks grow nearly in proportion to the context, so the
 * next try lies on the line through the two closest known points; every third halves what is left, in case they do not.
 */
function largestWithin(budget: number, f: (n: number) => number, most: number): number {
  let low = { n: 0, value: 0 };
  let lower = low;
  let high = { n: most + 1, value: Number.POSITIVE_INFINITY };
  for (let tries = 1; high.n - low.n > 1; tries++) {
    const n = Math.min(high.n - 1, Math.max(low.n + 1, guess(tries)));
    const value = f(n);
    if (value > budget) high = { n, value };
    else [lower, low] = [low, { n, value }];
  }
  return low.n;

  function guess(tries: number): number {
    if (low.n < 32) return Math.min(low.n + 16, Math.floor((low.n + high.n) / 2)); // small ones cost least
    const other = Number.isFinite(high.value) ? high : lower;
    const onLine = low.n + ((budget - low.value) * (other.n - low.n)) / (other.value - low.value);
    const halved = Math.floor((low.n + high.n) / 2);
    if (Number.isNaN(onLine) || (tries % 3 === 0 && Number.isFinite(high.value))) return halved;
    return Math.floor(Math.min(onLine, 4 * low.n)); // peaks of short contexts may lie flat
  }
}
