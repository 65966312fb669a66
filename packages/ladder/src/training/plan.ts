/**
 * Plans: memory and FLOPs of a training step, without running it. The trainer itself runs on the `meta` device, whose kernels
 * do nothing, so a plan is not a separate formula and cannot differ from the code.
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
import { checkCounts } from "../check-counts.ts";
import { type Adapter, effectiveDepth } from "../methods/adapter.ts";
import { type MethodOptions, makeAdapter } from "../methods/method.ts";
import { changesBackbone, refusePrefix } from "../methods/residual-stream.ts";
import { type BaseStorage, emptyWeights } from "../model/base-storage.ts";
import type { LabeledBatch } from "../model/batch-loss.ts";
import { contextLimit, type ModelConfig } from "../model/config.ts";
import { Decoder } from "../model/decoder.ts";
import type { FlopsByOp } from "./flop-counts.ts";
import type { MakeLoss } from "./loss.ts";
import { type MemoryOptions, Trainer } from "./trainer.ts";

/** One training step of a method on batches of full rows, as `makeBatch` makes them of unpacked records. */
export interface StepOptions {
  /** A method of this library by its options, or a function that makes an adapter of your own. */
  readonly method: MethodOptions | ((decoder: Decoder) => Adapter);
  /** Makes the loss, as for a `Trainer`. Default: that of the library. */
  readonly loss?: MakeLoss;
  /** Makes the optimizer, as for a `Trainer`. Default: AdamW. */
  readonly optimizer?: (parameters: ParamStore) => Optimizer;
  readonly storage: BaseStorage;
  readonly memory: MemoryOptions;
  readonly batchSize: number;
  /** [T] Tokens of each row; may exceed the model's context. */
  readonly context: number;
  /** Tokens of a prefix before every row, which the model has read before (`Decoder.readPrefix`). Default 0. */
  readonly prefixTokens?: number;
  /** Batches whose gradients are accumulated for one step. Default 1. */
  readonly gradientAccumulation?: number;
  /** Record the memory of every op of the step. */
  readonly timeline?: boolean;
}

/** A step, and the GPU it is planned for. */
export interface PlanOptions extends StepOptions {
  /** Limits and features of the GPU. Default: a discrete GPU with f16 and `USUAL_LIMITS`, as for `sidenet plan`. */
  readonly profile?: Partial<DeviceProfile>;
}

/** A buffer that exceeds the binding size of some GPUs. */
export interface LargeBuffer {
  readonly label: string;
  readonly sizeBytes: number;
}

/** Memory and FLOPs of one training step. */
export interface Plan {
  readonly trainableParameters: number;
  /** Number of blocks on the longest path from tokens to logits. */
  readonly effectiveDepth: number;
  readonly peakBytes: number;
  /** Live bytes at the peak by category; they add up to the peak. */
  readonly peakBytesByCategory: BytesByCategory;
  /** The largest live allocations at the peak. */
  readonly largest: readonly LargeBuffer[];
  /** Live bytes after the step. */
  readonly restingBytes: number;
  /** Floating-point operations of one step: forward, backward and update. */
  readonly flops: number;
  readonly flopsByOp: FlopsByOp;
  /** Tokens of one step. */
  readonly tokens: number;
  /** Buffers of more than 128 MiB, one of each label, in descending order. */
  readonly largeBuffers: readonly LargeBuffer[];
  /** Empty unless `StepOptions.timeline` is set. */
  readonly timeline: readonly MemorySample[];
}

/** The limits that a plan assumes: those of NVIDIA's driver. Most GPUs have as much or more. */
export const USUAL_LIMITS = { maxBindingBytes: 2 ** 31 - 4, maxBufferBytes: 2 ** 32 } as const;

/** Usual limits of binding sizes, in bytes: WebGPU's minimum, and those of GPUs. */
export const BINDING_LIMITS = [2 ** 27, 2 ** 30, 2 ** 31, 2 ** 32] as const;

/** Tokens of a batch: kernels count its positions in 31 bits. */
const MAX_BATCH_TOKENS = 2 ** 31 - 1;

/** A batch of this shape in which every position is visible and scored; its ids and labels are 0. Throws `L-OPTION`, `T-TOO-LARGE`. */
export function plannedBatch(batchSize: number, length: number): LabeledBatch {
  checkCounts({ batchSize, length });
  const size = batchSize * length;
  if (size > MAX_BATCH_TOKENS) {
    throw new SidenetError(
      "T-TOO-LARGE",
      `a batch of ${batchSize} rows of ${length} tokens has more than ${MAX_BATCH_TOKENS} tokens. Lower the context or the batch size.`,
    );
  }
  return {
    inputIds: new Int32Array(size),
    labels: new Int32Array(size),
    attentionMask: new Uint8Array(size).fill(1),
    batchSize,
    length,
  };
}

/** The same model without a limit on its context, so that longer contexts can be planned. */
const withoutContextLimit = (config: ModelConfig): ModelConfig => ({
  ...config,
  maxPositionEmbeddings: Number.MAX_SAFE_INTEGER,
  slidingWindow: null,
});

/** Plans one training step of a model from its configuration alone: `measureStep` on the `meta` device. Throws as it does. */
export const planStep = (config: ModelConfig, options: PlanOptions): Plan =>
  measureStep(new MetaDevice({ ...USUAL_LIMITS, ...options.profile }), config, options);

/**
 * Runs one training step of a model of this configuration on any device, with uninitialized weights, since memory and FLOPs do
 * not depend on values. Everything else that lives on the device counts too.
 *
 * Throws what `makeAdapter` and the constructor of `Trainer` throw; `L-OPTION` for a number of rows, tokens or batches that is
 * none; `L-CONTEXT` for a prefix that leaves no space, and `L-METHOD` for one before a method that changes the blocks;
 * `T-TOO-LARGE` or `T-OUT-OF-MEMORY` where it does not fit.
 */
export function measureStep(device: Device, config: ModelConfig, options: StepOptions): Plan {
  const { memory } = device;
  const large = new Map<string, number>();
  const before = memory.onReserve;
  const { maxBufferBytes } = device.profile;
  memory.onReserve = (allocation) => {
    const { label, sizeBytes } = allocation;
    if (sizeBytes > maxBufferBytes) {
      memory.free(allocation);
      throw refuseLarge(label, sizeBytes, maxBufferBytes);
    }
    if (sizeBytes > BINDING_LIMITS[0]) large.set(label, Math.max(large.get(label) ?? 0, sizeBytes));
  };
  try {
    const model = withoutContextLimit(config);
    using decoder = new Decoder(model, emptyWeights(device, model, options.storage));
    const {
      method,
      loss: makeLoss,
      optimizer,
      batchSize,
      context,
      gradientAccumulation = 1,
      prefixTokens = 0,
    } = options;
    checkCounts({ gradientAccumulation });
    checkCounts({ prefixTokens }, 0);
    decoder.readPrefix(new Array(prefixTokens).fill(0));
    using adapter = typeof method === "function" ? method(decoder) : makeAdapter(method, decoder, "planned");
    using trainer = new Trainer(decoder, adapter, {
      ...options.memory,
      learningRate: () => 0,
      ...(makeLoss && { loss: makeLoss }),
      ...(optimizer && { optimizer }),
    });
    memory.resetPeak();
    const flops = device.flops;
    const stop = options.timeline ? recordTimeline(device) : () => [];
    const batch = plannedBatch(batchSize, context);
    const { loss, norm } = trainer.dispatchStep(Array(gradientAccumulation).fill(batch));
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
      tokens: gradientAccumulation * batchSize * context,
      largeBuffers: [...large]
        .map(([label, sizeBytes]) => ({ label, sizeBytes }))
        .sort((a, b) => b.sizeBytes - a.sizeBytes),
      timeline,
    };
  } finally {
    memory.onReserve = before;
  }
}

/** What decides whether a method fits a model: `hasPrefix` says whether rows follow a prefix. */
interface MethodSettings {
  readonly method: MethodOptions;
  readonly storage: BaseStorage;
  readonly hasPrefix: boolean;
}

/** Throws what `makeAdapter` and `residualStream` throw for a model of this configuration, before it is loaded. */
export function checkMethod(config: ModelConfig, { method, storage, hasPrefix }: MethodSettings): void {
  using decoder = new Decoder(config, emptyWeights(new MetaDevice(), config, storage));
  using adapter = makeAdapter(method, decoder, "planned");
  if (hasPrefix && changesBackbone(adapter)) throw refusePrefix();
}

const refuseLarge = (label: string, sizeBytes: number, maxBufferBytes: number): SidenetError =>
  new SidenetError(
    "T-TOO-LARGE",
    `${label} needs a buffer of ${sizeBytes} bytes, this GPU allows ${maxBufferBytes}. Store weights in f16 (--dtype f16), and ` +
      "embeddings in NF4 (--quantize-ends, quantizeEmbeddings), or take a GPU with larger buffers.",
  );

/** Contexts are searched in steps of this many tokens. */
const CONTEXT_STEP = 64;
/** The longest context of the search. */
const MAX_TOKENS = 2 ** 20;

/** The longest context within a memory budget. */
export interface LongestContext {
  /** The longest context whose step fits, a multiple of 64 tokens, at most 1,048,576; 0 if none fits. */
  readonly context: number;
  /** `context`, but at most the model's own, less the prefix. */
  readonly usable: number;
  /** The plan for `usable` tokens; null if nothing fits. */
  readonly plan: Plan | null;
  /** If nothing fits, the peak at 64 tokens, or Infinity for a model with too large a buffer; else null. */
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
  const usable = Math.min(context, Math.max(0, contextLimit(config) - (options.prefixTokens ?? 0)));
  if (usable === 0) return { context, usable, plan: null, leastBytes: peakAt(1) };
  const plan = plans.get(usable) ?? planStep(config, { ...options, context: usable });
  return { context, usable, plan, leastBytes: null };
}

/**
 * The largest n <= max with f(n) <= budget, or 0, for an f that never decreases. Peaks grow nearly linearly with the context, so
 * the next n is interpolated between the two closest known points; every third bisects, in case the growth is not linear.
 */
function largestWithin(budget: number, f: (n: number) => number, max: number): number {
  let low = { n: 0, value: 0 };
  let lower = low;
  let high = { n: max + 1, value: Number.POSITIVE_INFINITY };
  for (let tries = 1; high.n - low.n > 1; tries++) {
    const n = Math.min(high.n - 1, Math.max(low.n + 1, guess(tries)));
    const value = f(n);
    if (value > budget) high = { n, value };
    else [lower, low] = [low, { n, value }];
  }
  return low.n;

  function guess(tries: number): number {
    if (low.n < 32) return Math.min(low.n + 16, Math.floor((low.n + high.n) / 2)); // small ones are quick
    const other = Number.isFinite(high.value) ? high : lower;
    const onLine = low.n + ((budget - low.value) * (other.n - low.n)) / (other.value - low.value);
    const halved = Math.floor((low.n + high.n) / 2);
    if (Number.isNaN(onLine) || (tries % 3 === 0 && Number.isFinite(high.value))) return halved;
    return Math.floor(Math.min(onLine, 4 * low.n)); // peaks of short contexts may be flat
  }
}
