/** What a trainer minimizes. */
import { type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import type { Adapter } from "../methods/adapter.ts";
import { type LabeledBatch, scoredPositions, targetLoss, uploadTargets } from "../model/batch-loss.ts";
import type { Decoder, Forward } from "../model/decoder.ts";
import type { LossOptions } from "../model/head.ts";

/** What a loss reads besides y. */
export interface LossInputs {
  readonly batch: LabeledBatch;
  /**
   * The batch as this decoder prepared it, for other passes of the same decoder. Another model has positions and a prefix of its
   * own: `teacher.prepare(batch)`.
   */
  readonly forward: Forward;
  /** What `upload` returned. */
  readonly uploaded: readonly Tensor[];
  /** Where the loss `readsFrozen`: the frozen model's H_L f32[B,T,d], the input of its final norm, which no tape records. */
  readonly frozen: Tensor | null;
}

/** The loss of a batch: a mean over positions, rows, or whatever else it counts. */
export interface Loss {
  /** The number of those in a batch, by which batches and micro-batches of a step are weighted; one with 0 is left out. */
  readonly count: (batch: LabeledBatch) => number;
  /** The mean f32[], computed with `ops` from y f32[B,T,d], the input of the final norm. */
  readonly mean: (ops: Ops, y: Tensor, inputs: LossInputs) => Tensor;
  /**
   * Uploads what `mean` reads of a batch besides `forward`. Where a loss has it, `mean` may depend on nothing of the host, not on
   * `batch` either, and a GPU's steps of one shape repeat (`Device.repeat`).
   */
  readonly upload?: (batch: LabeledBatch) => readonly Tensor[];
  /**
   * Whether `mean` compares with the frozen model, as preference losses and distillation do. Beside a side network or a head its
   * hidden state is that of the step's own pass; an adapter inside the blocks costs a second pass. Default false.
   */
  readonly readsFrozen?: boolean;
}

/** Makes the loss of a decoder with an adapter; null: without one. */
export type MakeLoss = (decoder: Decoder, adapter: Adapter | null) => Loss;

/** Mean negative log-likelihood of the labels over scored positions. */
const likelihoodLoss =
  (options: LossOptions): MakeLoss =>
  (decoder, adapter) => ({
    count: scoredPositions,
    upload: (batch) => uploadTargets(decoder, batch),
    mean: (ops, y, { uploaded }) => targetLoss(decoder, ops, y, uploaded, adapter?.head ?? null, options),
  });

/** Options of `lossOf`. */
export interface LossSettings {
  /** Makes the loss. Default: the mean negative log-likelihood of the labels. */
  readonly loss?: MakeLoss;
  /** Bytes of logits that the default loss computes at a time. The default depends on the device. */
  readonly lossChunkBytes?: number;
}

/** Makes the loss. Throws `L-OPTION` where an option of the default loss comes with another. */
export function lossOf({ loss, lossChunkBytes }: LossSettings): MakeLoss {
  if (!loss) return likelihoodLoss(lossChunkBytes ? { chunkBytes: lossChunkBytes } : {});
  if (lossChunkBytes === undefined) return loss;
  throw new SidenetError(
    "L-OPTION",
    "lossChunkBytes is an option of the library's loss, but another loss is given.",
  );
}

/** The mean of a batch. Throws `L-METHOD` unless it is f32[]. */
export function meanOf({ mean }: Loss, ...inputs: Parameters<Loss["mean"]>): Tensor {
  const loss = mean(...inputs) as Tensor | undefined;
  if (loss?.dtype === "f32" && loss.shape.length === 0) return loss;
  throw new SidenetError("L-METHOD", `the mean of the loss returned ${loss}, wanted f32 [].`);
}

export function refuseUncounted(batches: readonly LabeledBatch[]): SidenetError {
  const sizes = batches.map(({ batchSize, length }) => `${batchSize} x ${length}`).join(", ");
  return new SidenetError(
    "L-NOTHING-TO-LEARN",
    `no label ${sizes ? `of a batch of ${sizes} tokens is scored` : "is scored: there is no batch"}. Each record needs a label to learn.`,
  );
}
