/**
 * The training step: forward and backward pass of a decoder with its adapter, clipping, AdamW. It reads no files and prints
 * nothing; callers give batches and take reports (run/training-loop.ts runs many steps).
 */
import {
  AdamW,
  accumulateGradients,
  checkpoint,
  clipGlobalNorm,
  disposeGradients,
  type Gradients,
  type Optimizer,
  type SavedFormats,
  Tape,
} from "@sidenet/autograd";
import { type Device, type ParamStore, SidenetError, type Tensor } from "@sidenet/tensor";
import type { Adapter } from "./adapter.ts";
import { batchLoss, type LabeledBatch, scoredPositions } from "./batch-loss.ts";
import type { Decoder } from "./decoder.ts";
import { FlopCounts } from "./flop-counts.ts";
import { residualStream } from "./residual-stream.ts";

/** What trades memory for time or precision; docs/memory.md says what each costs and saves. */
export interface MemoryOptions {
  /** Compute recorded blocks again in the backward pass instead of keeping what they made. Default false. */
  readonly gradientCheckpointing?: boolean;
  /** AdamW's moments. Default f32. */
  readonly optimizerState?: "f32" | "8bit";
  /** How activations and rungs are kept for the backward pass. Default f32 both. */
  readonly savedFormats?: SavedFormats;
  /** Bytes of logits that the loss holds at a time. Default: what suits the device. */
  readonly lossChunkBytes?: number;
  /** Rows of a batch that go through forward and backward at a time; default: all. */
  readonly microBatchSize?: number | null;
  /** Tokens of a row that go through a frozen block at a time. Default 512. */
  readonly chunkTokens?: number;
}

/** How a trainer changes parameters, and what it does to save memory. */
export interface TrainerOptions extends MemoryOptions {
  /** Learning rate of a step, counted from 0. */
  readonly learningRate: (step: number) => number;
  /** Makes what updates the adapter's parameters. Default: an `AdamW` of the options below and of `optimizerState`. */
  readonly optimizer?: (parameters: ParamStore) => Optimizer;
  /** AdamW's; the defaults are 0.01, [0.9, 0.999] and 1e-8, as PyTorch's. */
  readonly weightDecay?: number;
  readonly betas?: readonly [number, number];
  readonly eps?: number;
  /** Global norm that gradients are clipped to. Default 1. */
  readonly maxGradNorm?: number;
}

/** What one training step found. */
export interface StepReport {
  /** Loss before the step's update. */
  readonly loss: number;
  /** Global gradient norm before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly tokens: number;
  /** False where the loss or the norm is not finite: nothing was updated then. */
  readonly updated: boolean;
}

/** What a step's update needs; the tensors are the caller's. */
interface Prepared {
  readonly loss: Tensor;
  readonly norm: Tensor;
  readonly factor: Tensor;
  readonly gradients: Gradients;
}

/** How far a trainer has come. With the values of parameters and moments it is all that a checkpoint needs. */
export interface TrainerCounters {
  /** Steps asked for, skipped ones included: the schedule's next. */
  readonly step: number;
  /** Forward passes so far, which dropout draws by. */
  readonly passes: number;
  /** Updates that AdamW made. */
  readonly updates: number;
}

/** One decoder, one adapter, and the optimizer that changes the adapter; a call of `step` is a training step. */
export class Trainer {
  readonly decoder: Decoder;
  readonly adapter: Adapter;
  readonly optimizer: Optimizer;
  /** Floating-point operations of the steps so far. */
  readonly flops: FlopCounts;
  readonly #options: TrainerOptions;
  #step = 0;
  /** Forward passes so far; each has dropout of its own. */
  #passes = 0;

  /** Throws `L-OPTION` where options of AdamW come with another optimizer. */
  constructor(decoder: Decoder, adapter: Adapter, options: TrainerOptions) {
    this.decoder = decoder;
    this.adapter = adapter;
    this.#options = options;
    this.flops = new FlopCounts(decoder.device);
    this.optimizer = makeOptimizer(adapter.parameters, options);
  }

  get #device(): Device {
    return this.decoder.device;
  }

  /** How far it has come: what a checkpoint keeps beside tensors. */
  get counters(): TrainerCounters {
    return { step: this.#step, passes: this.#passes, updates: this.optimizer.stepsDone };
  }

  /** Set it once the parameters and moments hold the values of a checkpoint, to go on from there. */
  set counters({ step, passes, updates }: TrainerCounters) {
    this.#step = step;
    this.#passes = passes;
    this.optimizer.stepsDone = updates;
  }

  /**
   * One update, from one batch or from the gradients of several together. It waits once, for the loss and the norm: what is
   * not finite would spoil every parameter, so the step then ends before its update.
   */
  async step(batches: LabeledBatch | readonly LabeledBatch[]): Promise<StepReport> {
    const all: readonly LabeledBatch[] = "inputIds" in batches ? [batches] : batches;
    const learningRate = this.#options.learningRate(this.#step);
    const prepared = this.#prepare(all);
    try {
      const [loss, gradNorm] = await Promise.all([prepared.loss.item(), prepared.norm.item()]);
      const updated = Number.isFinite(loss) && Number.isFinite(gradNorm);
      if (updated) this.#update(prepared, learningRate);
      this.#step++;
      const tokens = all.reduce((sum, { batchSize, length }) => sum + batchSize * length, 0);
      return { loss, gradNorm, learningRate, tokens, updated };
    } finally {
      for (const tensor of [prepared.loss, prepared.norm, prepared.factor]) tensor.dispose();
      disposeGradients(prepared.gradients);
    }
  }

  /** Asks for one update without waiting for it: its loss and gradient norm, f32[] each, are the caller's. */
  dispatchStep(batch: LabeledBatch): { loss: Tensor; norm: Tensor } {
    const prepared = this.#prepare([batch]);
    const { loss, norm } = prepared;
    try {
      this.#update(prepared, this.#options.learningRate(this.#step++));
      return { loss, norm };
    } catch (error) {
      loss.dispose();
      norm.dispose();
      throw error;
    } finally {
      prepared.factor.dispose();
      disposeGradients(prepared.gradients);
    }
  }

  #update({ gradients, factor }: Prepared, lr: number): void {
    const step = () => this.optimizer.step(gradients, { lr, gradScale: factor });
    this.#device.scope(() => this.flops.measure("update", step), { label: "an update" });
  }

  /** Forward and backward, and the factor that clips. Frees what it made if it throws. */
  #prepare(batches: readonly LabeledBatch[]): Prepared {
    const device = this.#device;
    return device.scope(
      () => {
        const { loss, gradients } = this.#gradientsOf(batches);
        try {
          const { maxGradNorm = 1 } = this.#options;
          const clip = () => clipGlobalNorm(gradients, maxGradNorm);
          const { factor, norm } = this.flops.measure("update", clip);
          for (const gradient of gradients.values()) device.keep(gradient, "gradients");
          return { loss: device.keep(loss), norm: device.keep(norm), factor: device.keep(factor), gradients };
        } catch (error) {
          disposeGradients(gradients);
          throw error;
        }
      },
      { label: "a training step" },
    );
  }

  /** Loss and gradients of batches, as the mean over all their scored positions, however they are split into micro-batches. */
  #gradientsOf(batches: readonly LabeledBatch[]): { loss: Tensor; gradients: Gradients } {
    const device = this.#device;
    const scored = batches.reduce((sum, batch) => sum + scoredPositions(batch), 0);
    if (scored === 0) throw refuseUnscored(batches);
    const parts = batches.flatMap((batch) => microBatches(batch, this.#options.microBatchSize ?? null));
    if (parts.length === 1) return this.#backward(parts[0], 1);
    const gradients: Gradients = new Map();
    try {
      const loss = device.zeros([], { label: "loss" });
      for (const part of parts) {
        const share = scoredPositions(part) / scored;
        if (share === 0) continue;
        device.scope(() => {
          const one = this.#backward(part, share);
          this.flops.measure("backward", () => {
            accumulateGradients(gradients, one.gradients);
            device.ops.accumulate(loss, device.ops.scale(one.loss, { factor: share }));
          });
        });
      }
      return { loss, gradients };
    } catch (error) {
      disposeGradients(gradients);
      throw error;
    }
  }

  /** `share` is the weight of this loss in the step's. */
  #backward(batch: LabeledBatch, share: number): { loss: Tensor; gradients: Gradients } {
    const { decoder, adapter } = this;
    const device = this.#device;
    const { savedFormats, gradientCheckpointing, chunkTokens, lossChunkBytes } = this.#options;
    using tape = new Tape(device, adapter.parameters, { formats: savedFormats ?? {} });
    // A scope of its own: when it ends, the forward pass lives on only in what the tape has saved.
    const forward = () =>
      device.scope(() => {
        const y = residualStream(decoder, adapter, decoder.prepare(batch), {
          ops: tape,
          dropoutStream: this.#passes++,
          runLayer: gradientCheckpointing ? (fn, inputs) => checkpoint(tape, fn, inputs) : null,
          ...(chunkTokens && { chunkTokens }),
        });
        const options = lossChunkBytes ? { chunkBytes: lossChunkBytes } : {};
        return batchLoss(decoder, tape, y, batch, adapter.head, options);
      });
    const loss = this.flops.measure("forward", forward);
    const upstream = share === 1 ? null : device.tensor([share], loss.shape, { label: "share of the loss" });
    return { loss, gradients: this.flops.measure("backward", () => tape.backward(loss, upstream)) };
  }

  /** Frees the optimizer's state; decoder and adapter are their owners'. */
  dispose(): void {
    this.optimizer.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

const ADAMW_OPTIONS = ["betas", "eps", "weightDecay", "optimizerState"] as const;

/** Throws `L-OPTION` where options of AdamW come with another optimizer. */
function makeOptimizer(parameters: ParamStore, options: TrainerOptions): Optimizer {
  const { betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01, optimizerState: state = "f32" } = options;
  if (!options.optimizer) return new AdamW(parameters, { betas, eps, weightDecay, state });
  const unused = ADAMW_OPTIONS.filter((name) => options[name] !== undefined);
  if (unused.length === 0) return options.optimizer(parameters);
  throw new SidenetError(
    "L-OPTION",
    `${unused.join(", ")} are options of AdamW, but another optimizer is given. Give them to that one.`,
  );
}

function refuseUnscored(batches: readonly LabeledBatch[]): SidenetError {
  const sizes = batches.map(({ batchSize, length }) => `${batchSize} x ${length}`).join(", ");
  return new SidenetError(
    "L-NOTHING-TO-LEARN",
    `no label ${sizes ? `of a batch of ${sizes} tokens is scored` : "is scored: there is no batch"}. Give each record something to learn.`,
  );
}

/** A batch in parts of at most `rows` rows. */
function microBatches(batch: LabeledBatch, rows: number | null): LabeledBatch[] {
  const { batchSize, length } = batch;
  if (rows === null || rows >= batchSize) return [batch];
  const parts: LabeledBatch[] = [];
  for (let first = 0; first < batchSize; first += rows) {
    const count = Math.min(rows, batchSize - first);
    const part = (values: ArrayLike<number>) =>
      Int32Array.from({ length: count * length }, (_, i) => values[first * length + i]);
    parts.push({
      inputIds: part(batch.inputIds),
      labels: part(batch.labels),
      attentionMask: batch.attentionMask && part(batch.attentionMask),
      segments: batch.segments ? part(batch.segments) : null,
      batchSize: count,
      length,
    });
  }
  return parts;
}

/**
 * Mean negative log-likelihood over all scored positions of the batches, with or without an adapter. `lossChunkBytes`: as
 * `MemoryOptions` have it. Throws `L-NOTHING-TO-LEARN` when no position is scored.
 */
export async function evaluateLoss(
  decoder: Decoder,
  adapter: Adapter | null,
  batches: readonly LabeledBatch[],
  { lossChunkBytes }: Pick<MemoryOptions, "lossChunkBytes"> = {},
): Promise<number> {
  const { device } = decoder;
  const options = lossChunkBytes ? { chunkBytes: lossChunkBytes } : {};
  let total = 0;
  let positions = 0;
  for (const batch of batches) {
    using loss = device.scope(() => {
      const y = residualStream(decoder, adapter, decoder.prepare(batch));
      return batchLoss(decoder, device.ops, y, batch, adapter?.head ?? null, options);
    });
    const scored = scoredPositions(batch);
    total += (await loss.item()) * scored;
    positions += scored;
  }
  if (positions === 0) throw refuseUnscored(batches);
  return total / positions;
}
