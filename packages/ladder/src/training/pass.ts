/** A pass over a batch and the losses at its end, in training and in evaluation. */
import { formatShape, type RepeatCall, type Tensor } from "@sidenet/tensor";
import type { Adapter } from "../methods/adapter.ts";
import { residualStreams, type StreamOptions, streamsAndFrozen } from "../methods/residual-stream.ts";
import type { LabeledBatch } from "../model/batch-loss.ts";
import type { Decoder, Forward } from "../model/decoder.ts";
import { type Loss, meanOf } from "./loss.ts";

/** What a pass computes from. */
export interface PassInputs {
  readonly batch: LabeledBatch;
  /** The batch on the device. */
  readonly forward: Forward;
  /** What each loss reads of the batch besides. */
  readonly uploaded: readonly (readonly Tensor[])[];
}

/** Uploads a batch. */
export const uploadInputs = (decoder: Decoder, losses: readonly Loss[], batch: LabeledBatch): PassInputs => ({
  batch,
  forward: decoder.prepare(batch),
  uploaded: losses.map(({ upload }) => upload?.(batch) ?? []),
});

/** Their tensors; null in the place of those that this batch does not have. */
export function inputTensors({ forward, uploaded }: PassInputs): (Tensor | null)[] {
  const { ids, context, prefixMask } = forward;
  const { rope, keyMask, segments } = context;
  return [ids, rope.cos, rope.sin, keyMask, segments, prefixMask, ...uploaded.flat()];
}

/** The call of `Device.repeat` for a pass of this name over these tensors, null for those that it has not. */
export function repeatCall(
  owner: object,
  name: string,
  { prefixIds }: Decoder,
  tensors: readonly (Tensor | null)[],
): RepeatCall {
  const shapes = tensors.map((tensor) => tensor && `${tensor.dtype}${formatShape(tensor.shape)}`);
  const inputs = tensors.filter((tensor) => tensor !== null);
  return { owner, key: [name, prefixIds.length, ...shapes].join(" "), inputs };
}

/** Whether all passes for which such a call is the same issue the same commands. */
export const isRepeatable = (adapters: readonly (Adapter | null)[], losses: readonly Loss[]): boolean =>
  adapters.every((adapter) => adapter === null || adapter.isRepeatable) &&
  losses.every(({ upload }) => upload);

/** The mean losses f32[] by adapters that share a pass over the backbone, by one loss each. */
export function passLosses(
  decoder: Decoder,
  adapters: readonly (Adapter | null)[],
  losses: readonly Loss[],
  { batch, forward, uploaded }: PassInputs,
  options: StreamOptions = {},
): Tensor[] {
  const { device } = decoder;
  const { ops = device.ops } = options;
  const readsFrozen = losses.some((loss) => loss.readsFrozen);
  const { ys, frozen } = readsFrozen
    ? streamsAndFrozen(decoder, adapters, forward, options)
    : { ys: residualStreams(decoder, adapters, forward, options), frozen: null };
  return losses.map((loss, i) =>
    device.scope(() => meanOf(loss, ops, ys[i], { batch, forward, uploaded: uploaded[i], frozen })),
  );
}
