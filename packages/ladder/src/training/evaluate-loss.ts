import { concatAll } from "@sidenet/tensor";
import type { Adapter } from "../methods/adapter.ts";
import { residualStreams, sharedPasses } from "../methods/residual-stream.ts";
import type { LabeledBatch } from "../model/batch-loss.ts";
import type { Decoder } from "../model/decoder.ts";
import { type LossSettings, lossOf, meanOf, refuseUncounted } from "./loss.ts";

/**
 * Mean loss over all that it counts in the batches, with or without an adapter: by default, the negative log-likelihood over scored
 * positions. Throws `L-NOTHING-TO-LEARN` when it counts nothing.
 */
export async function evaluateLoss(
  decoder: Decoder,
  adapter: Adapter | null,
  batches: readonly LabeledBatch[],
  options: LossSettings = {},
): Promise<number> {
  const [loss] = await evaluateLosses(decoder, [adapter], batches, options);
  return loss;
}

/** `evaluateLoss` with each adapter (null: the backbone alone), which share passes over the backbone where they can. */
export async function evaluateLosses(
  decoder: Decoder,
  adapters: readonly (Adapter | null)[],
  batches: readonly LabeledBatch[],
  options: LossSettings = {},
): Promise<number[]> {
  const { device } = decoder;
  const makeLoss = lossOf(options);
  const losses = adapters.map((adapter) => makeLoss(decoder, adapter));
  const totals = adapters.map(() => 0);
  let counted = 0;
  for (const batch of batches) {
    const count = losses[0].count(batch);
    if (count === 0) continue;
    counted += count;
    let a = 0;
    for (const pass of sharedPasses(adapters)) {
      const ofPass = losses.slice(a, a + pass.length);
      using means = device.scope(() => {
        const forward = decoder.prepare(batch);
        const ys = residualStreams(decoder, pass, forward);
        const each = ofPass.map((loss, i) =>
          device.scope(() => {
            const uploaded = loss.upload?.(batch) ?? [];
            return device.ops.reshape(meanOf(loss, device.ops, ys[i], batch, forward, uploaded), {
              shape: [1],
            });
          }),
        );
        return concatAll(device.ops, each, 0);
      });
      for (const mean of await means.read()) totals[a++] += mean * count;
    }
  }
  if (counted === 0) throw refuseUncounted(batches);
  return totals.map((total) => total / counted);
}
