/** The loss of a batch. Only positions that have a label go through the head. */
import { type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import { type Decoder, shiftLabels, type TokenBatch } from "./decoder.ts";
import type { Head, LossOptions } from "./head.ts";

/** A batch with B · T labels, aligned with `inputIds`; -100 is not scored. */
export interface LabeledBatch extends TokenBatch {
  readonly labels: ArrayLike<number>;
}

/** The label of positions that are not scored. */
const IGNORED = -100;

/** The number of positions that the loss of this batch scores. */
export function scoredPositions(batch: LabeledBatch): number {
  const targets = shiftLabels(batch.labels, batch.batchSize, batch.length);
  return targets.reduce((count, target) => count + (target === IGNORED ? 0 : 1), 0);
}

/** The number of selected positions is padded to a multiple of this, so that buffer sizes repeat. */
const SELECTED_MULTIPLE = 64;
/** Positions are selected only where at most this share of them remains: otherwise the copy costs more than it saves. */
const SELECTED_SHARE = 7 / 8;

/** Which of N positions go through the head, as `selectRows` takes them; null: all. */
function selection(targets: Int32Array): { rows: Int32Array; back: Int32Array; targets: Int32Array } | null {
  const scored = [...targets.keys()].filter((n) => targets[n] !== IGNORED);
  const count = Math.ceil(scored.length / SELECTED_MULTIPLE) * SELECTED_MULTIPLE;
  if (count > SELECTED_SHARE * targets.length) return null;
  const rows = new Int32Array(count).fill(-1);
  const back = new Int32Array(targets.length).fill(-1);
  for (const [m, n] of scored.entries()) {
    rows[m] = n;
    back[n] = m;
  }
  return { rows, back, targets: Int32Array.from(rows, (n) => (n < 0 ? IGNORED : targets[n])) };
}

/**
 * Uploads what a batch is scored against: i32[N], the next tokens, -100 where nothing is scored; and where these are not all of its
 * positions, `rows` and `back` of `selectRows`. Throws `L-TOKEN` for a label that is neither -100 nor in the vocabulary.
 */
export function uploadTargets({ device, config }: Decoder, batch: LabeledBatch): Tensor[] {
  checkLabels(batch, config.vocabSize);
  const targets = shiftLabels(batch.labels, batch.batchSize, batch.length);
  const put = (values: Int32Array, label: string) =>
    device.tensor(values, [values.length], { dtype: "i32", label });
  const selected = selection(targets);
  if (!selected) return [put(targets, "targets")];
  return [
    put(selected.targets, "targets"),
    put(selected.rows, "scored positions"),
    put(selected.back, "inverse of scored positions"),
  ];
}

/**
 * Mean negative log-likelihood f32[] of the labels that were uploaded over the residual stream y[B,T,d] of their batch. Only scored
 * positions go through the final norm and the head.
 */
export function targetLoss(
  decoder: Decoder,
  ops: Ops,
  y: Tensor,
  [targets, rows, back]: readonly Tensor[],
  head: Head | null,
  options: LossOptions,
): Tensor {
  const { hiddenSize: d } = decoder.config;
  const scored = rows ? ops.selectRows(ops.reshape(y, { shape: [y.size / d, d] }), rows, back) : y;
  return decoder.loss(ops, scored, targets, head ?? decoder.head, options);
}

/** `targetLoss` of a batch on the host. Throws `L-TOKEN` for a label that is neither -100 nor in the vocabulary. */
export function batchLoss(
  decoder: Decoder,
  ops: Ops,
  y: Tensor,
  batch: LabeledBatch,
  head: Head | null = null,
  options: LossOptions = {},
): Tensor {
  return targetLoss(decoder, ops, y, uploadTargets(decoder, batch), head, options);
}

function checkLabels({ labels, length }: LabeledBatch, vocabSize: number): void {
  for (let i = 0; i < labels.length; i++) {
    const label = labels[i];
    if (label === IGNORED || (label >= 0 && label < vocabSize)) continue;
    throw new SidenetError(
      "L-TOKEN",
      `label ${label} at position ${i % length} of row ${Math.floor(i / length)} is neither -100 nor in the ` +
        `vocabulary of ${vocabSize}. Does the tokenizer belong to this model?`,
    );
  }
}
