/**
 * The training step: forward and backward pass of a decoder with its adapter, gradient clipping, AdamW. The loop over the
 * steps of a run is training-loop.ts.
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
import { type Device, type ParamStore, type RepeatCall, SidenetError, type Tensor } from "@sidenet/tensor";
import { checkCounts } from "../check-counts.ts";
import type { Adapter } from "../methods/adapter.ts";
import type { StreamOptions } from "../methods/residual-stream.ts";
import type { LabeledBatch } from "../model/batch-loss.ts";
import type { Decoder } from "../model/decoder.ts";
import { FlopCounts } from "./flop-counts.ts";
import { type Loss, lossOf, type MakeLoss, refuseUncounted } from "./loss.ts";
import { inputTensors, isRepeatable, type PassInputs, passLosses, repeatCall, uploadInputs } from "./pass.ts";

/** Options that save memory at the cost of time or precision; docs/memory.md has the figures. */
export interface MemoryOptions {
  /** Recompute the recorded blocks in the backward pass instead of keeping their activations. Default false. */
  readonly gradientCheckpointing?: boolean;
  /** Format of AdamW's moments. Default f32. */
  readonly optimizerState?: "f32" | "8bit";
  /** Formats of activations and rungs kept for the backward pass. Default f32 for both. */
  readonly savedFormats?: SavedFormats;
  /** Bytes of logits that the library's loss computes at a time. The default depends on the device. */
  readonly lossChunkBytes?: number;
  /** Rows of a batch per forward and backward pass; null, the default: all. */
  readonly microBatchSize?: number | null;
  /** Tokens of each row that go through a frozen block at a time. Default: the hidden size, within 512 and 2048. */
  readonly chunkTokens?: number;
}

/** Options of a trainer. */
export interface TrainerOptions extends MemoryOptions {
  /** Learning rate of a step, counted from 0. */
  readonly learningRate: (step: number) => number;
  /** Makes the loss. Default: the mean negative log-likelihood of the labels. */
  readonly loss?: MakeLoss;
  /** Makes what updates the adapter's parameters. Default: an `AdamW` of the options below and of `optimizerState`. */
  readonly optimizer?: (parameters: ParamStore) => Optimizer;
  /** Options of AdamW, with PyTorch's defaults 0.01, [0.9, 0.999] and 1e-8. */
  readonly weightDecay?: number;
  readonly betas?: readonly [number, number];
  readonly eps?: number;
  /** Global norm that gradients are clipped to. Default 1. */
  readonly maxGradNorm?: number;
}

/** The figures of one training step. */
export interface StepReport {
  /** Loss before the step's update: of the library's loss, nats per scored token. */
  readonly loss: number;
  /** Global gradient norm before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  /** Tokens of the batches, padding included. */
  readonly tokens: number;
  /** False where the loss or the norm was not finite and nothing was updated. */
  readonly updated: boolean;
}

/** Loss, gradients and clipping factor of a step before its update. The tensors belong to the caller. */
interface Prepared {
  readonly loss: Tensor;
  readonly norm: Tensor;
  readonly factor: Tensor;
  readonly gradients: Gradients;
}

/** The progress of a trainer. A checkpoint holds it with the parameters and the moments. */
export interface TrainerCounters {
  /** Steps so far, including those without an update: the schedule's next step. */
  readonly step: number;
  /** Forward passes so far, by which dropout draws. */
  readonly passes: number;
  /** Updates that AdamW made. */
  readonly updates: number;
}

/** Trains an adapter beside a decoder; each call of `step` is one training step. */
export class Trainer {
  readonly decoder: Decoder;
  readonly adapter: Adapter;
  readonly optimizer: Optimizer;
  /** Floating-point operations of the steps so far. */
  readonly flops: FlopCounts;
  readonly #options: TrainerOptions;
  readonly #loss: Loss;
  #step = 0;
  /** Forward passes so far: each has its own random stream for dropout. */
  #passes = 0;

  /** Throws `L-OPTION` where options of AdamW or of the library's loss come with another, and for rows or tokens that are no whole number above 0. */
  constructor(decoder: Decoder, adapter: Adapter, options: TrainerOptions) {
    const { microBatchSize, chunkTokens } = options;
    checkCounts({ microBatchSize: microBatchSize ?? 1, chunkTokens: chunkTokens ?? 1 });
    this.decoder = decoder;
    this.adapter = adapter;
    this.#options = options;
    this.flops = new FlopCounts(decoder.device);
    this.#loss = lossOf(options)(decoder, adapter);
    this.optimizer = makeOptimizer(adapter.parameters, options);
  }

  get #device(): Device {
    return this.decoder.device;
  }

  /** The progress of the trainer, which a checkpoint keeps beside the tensors. */
  get counters(): TrainerCounters {
    return { step: this.#step, passes: this.#passes, updates: this.optimizer.stepsDone };
  }

  /** Set after parameters and moments were restored from a checkpoint. */
  set counters({ step, passes, updates }: TrainerCounters) {
    this.#step = step;
    this.#passes = passes;
    this.optimizer.stepsDone = updates;
  }

  /**
   * One update from one batch, or from several batches whose gradients are accumulated. It waits for the loss and the gradient
   * norm: where one is not finite, nothing is updated, since the update would make every parameter NaN.
   *
   * Throws `L-NOTHING-TO-LEARN` where no label is scored, `L-LABELS` and `L-TOKEN` for labels and ids that are not the model's,
   * `L-CONTEXT` for rows that are too long, `L-METHOD` for an adapter or a loss that does not fit, `A-UNUSED` for parameters
   * that get no gradient, and `A-OPTIMIZER` for a learning rate that is none.
   */
  async step(batches: LabeledBatch | readonly LabeledBatch[]): Promise<StepReport> {
    const all = asList(batches);
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

  /** The update of `step` without waiting for the device. Loss and gradient norm, f32[] each, belong to the caller. Throws as it does. */
  dispatchStep(batches: LabeledBatch | readonly LabeledBatch[]): { loss: Tensor; norm: Tensor } {
    const prepared = this.#prepare(asList(batches));
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

  /** Forward pass, backward pass and clipping factor. Leaves nothing behind if it throws. */
  #prepare(batches: readonly LabeledBatch[]): Prepared {
    const device = this.#device;
    return device.scope(
      () => {
        const { loss, gradients } = this.#gradientsOf(batches);
        try {
          const { maxGradNorm = 1 } = this.#options;
          const clip = () => Object.entries(clipGlobalNorm(gradients, maxGradNorm));
          const measured = () => new Map(this.flops.measure("update", clip));
          const call = { owner: this, key: "the norm", inputs: [...gradients.values()] };
          const clipped = this.#repeat(call, measured);
          const [norm, factor] = [clipped.get("norm")!, clipped.get("factor")!];
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

  /** Mean loss over all that it counts in the batches, and its gradients, computed in micro-batches. */
  #gradientsOf(batches: readonly LabeledBatch[]): { loss: Tensor; gradients: Gradients } {
    const device = this.#device;
    const counted = batches.reduce((sum, batch) => sum + this.#loss.count(batch), 0);
    if (counted === 0) throw refuseUncounted(batches);
    const parts = batches.flatMap((batch) => microBatches(batch, this.#options.microBatchSize ?? null));
    if (parts.length === 1) return this.#backward(parts[0], 1, "alone");
    const gradients: Gradients = new Map();
    try {
      const loss = device.zeros([], { label: "loss" });
      for (const part of parts) {
        const share = this.#loss.count(part) / counted;
        if (share === 0) continue;
        device.scope(() => {
          const one = this.#backward(part, share, gradients.size === 0 ? "first" : "later");
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

  /**
   * Loss and gradients of a micro-batch; its loss has the weight `share` in that of the step. `memory` names what else is alive:
   * equal passes beside equal memory are issued again.
   */
  #backward(batch: LabeledBatch, share: number, memory: string): { loss: Tensor; gradients: Gradients } {
    const { decoder, adapter } = this;
    const device = this.#device;
    const inputs = uploadInputs(decoder, [this.#loss], batch);
    const upstream = share === 1 ? null : device.tensor([share], [], { label: "share of the loss" });
    const dropoutStream = this.#passes++;
    const run = () => this.#run(inputs, upstream, dropoutStream);
    const call = repeatCall(this, memory, decoder, [...inputTensors(inputs), upstream]);
    const options = { consume: call.inputs };
    const results = isRepeatable([adapter], [this.#loss])
      ? this.#repeat(call, run, options)
      : device.scope(run, options);
    const gradients: Gradients = new Map();
    for (const [name, tensor] of results) if (name !== "loss") gradients.set(name, tensor);
    return { loss: results.get("loss")!, gradients };
  }

  /** `Device.repeat`, with the operations counted. */
  #repeat<K>(
    call: RepeatCall,
    body: () => ReadonlyMap<K, Tensor>,
    options: { consume?: readonly Tensor[] } = {},
  ): ReadonlyMap<K, Tensor> {
    return this.flops.repeat(call.key, () => this.#device.repeat(call, body, options));
  }

  /** The forward and backward pass of a micro-batch: its loss, and the gradients by parameter. */
  #run(
    inputs: PassInputs,
    upstream: Tensor | null,
    dropoutStream: number,
  ): ReadonlyMap<"loss" | Tensor, Tensor> {
    const { decoder, adapter } = this;
    const device = this.#device;
    const { savedFormats, gradientCheckpointing, chunkTokens } = this.#options;
    using tape = new Tape(device, adapter.parameters, { formats: savedFormats ?? {} });
    const streamOptions: StreamOptions = {
      ops: tape,
      dropoutStream,
      runLayer: gradientCheckpointing ? (fn, inputs) => checkpoint(tape, fn, inputs) : null,
      ...(chunkTokens && { chunkTokens }),
    };
    const computeLoss = () => passLosses(decoder, [adapter], [this.#loss], inputs, streamOptions)[0];
    // When this scope ends, only what the tape has saved of the forward pass is still alive.
    const consume = inputTensors(inputs).filter((tensor) => tensor !== null);
    const loss = this.flops.measure("forward", () => device.scope(computeLoss, { consume }));
    const gradients = this.flops.measure("backward", () => tape.backward(loss, upstream));
    return new Map<"loss" | Tensor, Tensor>([["loss", loss], ...gradients]);
  }

  /** Frees the optimizer's state; decoder and adapter belong to the caller. */
  dispose(): void {
    this.optimizer.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

const asList = (batches: LabeledBatch | readonly LabeledBatch[]): readonly LabeledBatch[] =>
  "inputIds" in batches ? [batches] : batches;

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

/** Splits a batch into micro-batches of at most `rows` rows. */
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
