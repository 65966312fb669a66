import { concatAll, type Tensor } from "@sidenet/tensor";
import type { Adapter } from "../methods/adapter.ts";
import { sharedPasses } from "../methods/residual-stream.ts";
import type { LabeledBatch } from "../model/batch-loss.ts";
import type { Decoder } from "../model/decoder.ts";
import { type Loss, type LossSettings, lossOf, refuseUncounted } from "./loss.ts";
import { inputTensors, isRepeatable, passLosses, repeatCall, uploadInputs } from "./pass.ts";

/**
 * Mean loss over all that it counts in the batches, with or without an adapter: by default, the negative log-likelihood in nats per
 * scored token. Throws `L-NOTHING-TO-LEARN` when it counts nothing, and for batches as `Trainer.step` does.
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
      using means = meansOf(
        decoder,
        pass,
        losses.slice(a, a + pass.length),
        batch,
        nameOf(decoder, pass, options),
      );
      for (const mean of await means.read()) totals[a++] += mean * count;
    }
  }
  if (counted === 0) throw refuseUncounted(batches);
  return totals.map((total) => total / counted);
}

const numbers = new WeakMap<object, number>();
let lastNumber = 0;

/** A number by which texts can name an object. */
function numberOf(object: object): number {
  const number = numbers.get(object) ?? ++lastNumber;
  numbers.set(object, number);
  return number;
}

/** All that an evaluation's commands depend on but the shapes of the batch. */
function nameOf(
  decoder: Decoder,
  pass: readonly (Adapter | null)[],
  { loss, lossChunkBytes = 0 }: LossSettings,
): string {
  const adapters = pass.map((adapter) => (adapter ? numberOf(adapter) : 0));
  const ownLoss = loss ? numberOf(loss) : 0;
  return `evaluation by ${numberOf(decoder)} with ${adapters}, loss ${ownLoss}, chunks of ${lossChunkBytes}`;
}

/** The mean losses f32[N] of a batch by N adapters that share a pass, by one loss each. */
function meansOf(
  decoder: Decoder,
  pass: readonly (Adapter | null)[],
  losses: readonly Loss[],
  batch: LabeledBatch,
  name: string,
): Tensor {
  const { device } = decoder;
  return device.scope(() => {
    const inputs = uploadInputs(decoder, losses, batch);
    const run = () => {
      const means = passLosses(decoder, pass, losses, inputs);
      const rows = means.map((mean) => device.ops.reshape(mean, { shape: [1] }));
      return new Map([["means", concatAll(device.ops, rows, 0)]]);
    };
    const call = repeatCall(pass.at(-1) ?? decoder, name, decoder, inputTensors(inputs));
    const results = isRepeatable(pass, losses) ? device.repeat(call, run) : run();
    return results.get("means")!;
  });
}
