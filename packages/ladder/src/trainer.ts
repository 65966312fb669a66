/**
 * The one training loop: a frozen decoder, what is trained beside it, AdamW. It reads no files and prints nothing; callers
 * give batches and take reports.
 */
import { AdamW, clipGlobalNorm, Tape } from "@sidenet/autograd";
import { type Device, SidenetError, type Tensor } from "@sidenet/tensor";
import { type Decoder, shiftLabels, type TokenBatch } from "./decoder.ts";
import { residualStream } from "./residual-stream.ts";
import type { SideNetwork } from "./side-network.ts";

/** A batch with its labels, B · T of them aligned with `inputIds`; -100 is not scored. */
export interface LabeledBatch extends TokenBatch {
  readonly labels: ArrayLike<number>;
}

export interface TrainerOptions {
  /** Learning rate of a step, counted from 0. */
  readonly learningRate: (step: number) => number;
  readonly weightDecay?: number;
  readonly betas?: readonly [number, number];
  readonly eps?: number;
  /** Global norm that gradients are clipped to. Default 1. */
  readonly maxGradNorm?: number;
}

export interface StepReport {
  /** Loss before the step's update. */
  readonly loss: number;
  /** Global gradient norm before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly tokens: number;
}

/** Positions that a loss over this batch scores. */
export function scoredPositions(batch: LabeledBatch): number {
  const targets = shiftLabels(batch.labels, batch.batchSize, batch.length);
  return targets.reduce((count, target) => count + (target === -100 ? 0 : 1), 0);
}

export class Trainer {
  readonly decoder: Decoder;
  readonly side: SideNetwork;
  readonly optimizer: AdamW;
  readonly #options: TrainerOptions;
  #step = 0;

  constructor(decoder: Decoder, side: SideNetwork, options: TrainerOptions) {
    const { betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01 } = options;
    this.decoder = decoder;
    this.side = side;
    this.#options = options;
    this.optimizer = new AdamW(side.parameters, { betas, eps, weightDecay });
  }

  get #device(): Device {
    return this.decoder.device;
  }

  /** One update. The read of its loss is the only wait. */
  async step(batch: LabeledBatch): Promise<StepReport> {
    const learningRate = this.#options.learningRate(this.#step);
    const { loss, norm } = this.dispatchStep(batch);
    try {
      const tokens = batch.batchSize * batch.length;
      return { loss: await loss.item(), gradNorm: await norm.item(), learningRate, tokens };
    } finally {
      loss.dispose();
      norm.dispose();
    }
  }

  /** Asks for one update without waiting for it: its loss and gradient norm, f32[] each, are the caller's. */
  dispatchStep(batch: LabeledBatch): { loss: Tensor; norm: Tensor } {
    const learningRate = this.#options.learningRate(this.#step++);
    return this.#device.scope(() => this.#update(batch, learningRate), { label: "a training step" });
  }

  #update(batch: LabeledBatch, lr: number): { loss: Tensor; norm: Tensor } {
    const { decoder, side } = this;
    using tape = new Tape(this.#device, side.parameters);
    // A scope of its own: when it ends, the forward pass lives on only in what the tape has saved.
    const loss = this.#device.scope(() => {
      const y = residualStream(decoder, side, decoder.prepare(batch), { sideOps: tape });
      return decoder.loss(tape, y, targetsOf(decoder, batch));
    });
    const gradients = tape.backward(loss);
    const { factor, norm } = clipGlobalNorm(this.#device, gradients, this.#options.maxGradNorm ?? 1);
    this.optimizer.step(gradients, { lr, gradScale: factor });
    return { loss, norm };
  }

  dispose(): void {
    this.optimizer.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** i32[B·T], the labels shifted by one. Throws `L-TOKEN` for a label that is neither -100 nor in the vocabulary. */
function targetsOf({ device, config }: Decoder, batch: LabeledBatch): Tensor {
  for (let i = 0; i < batch.labels.length; i++) {
    const label = batch.labels[i];
    if (label === -100 || (label >= 0 && label < config.vocabSize)) continue;
    throw new SidenetError(
      "L-TOKEN",
      `label ${label} at position ${i % batch.length} of row ${Math.floor(i / batch.length)} is neither -100 nor in the ` +
        `vocabulary of ${config.vocabSize}. Does the tokenizer belong to this model?`,
    );
  }
  const targets = shiftLabels(batch.labels, batch.batchSize, batch.length);
  return device.tensor(targets, [targets.length], { dtype: "i32", label: "targets" });
}

/** Mean negative log-likelihood over all scored positions of the batches, with or without the side network. */
export async function evaluateLoss(
  decoder: Decoder,
  side: SideNetwork | null,
  batches: readonly LabeledBatch[],
): Promise<number> {
  const { device } = decoder;
  let total = 0;
  let positions = 0;
  for (const batch of batches) {
    using loss = device.scope(() => {
      const y = residualStream(decoder, side, decoder.prepare(batch));
      return decoder.loss(device.ops, y, targetsOf(decoder, batch));
    });
    const scored = scoredPositions(batch);
    total += (await loss.item()) * scored;
    positions += scored;
  }
  return total / Math.max(1, positions);
}
