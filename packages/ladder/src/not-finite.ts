/** Errors for NaN and infinite results, which name the tensor that is the cause, and what to do. */
import { firstNonFinite, isFloat, type ParamStore, SidenetError } from "@sidenet/tensor";
import type { Adapter } from "./methods/adapter.ts";
import type { Decoder } from "./model/decoder.ts";

/** The first NaN or infinite value of a store, such as "model.norm.weight[12] = NaN"; null if all are finite. */
async function nonFiniteValue(store: ParamStore): Promise<string | null> {
  for (const [name, tensor] of store) {
    if (!isFloat(tensor.dtype)) continue;
    const found = firstNonFinite(await tensor.read());
    if (found === null) continue;
    const index: number[] = [];
    let rest = found.index;
    for (const size of [...tensor.shape].reverse()) {
      index.unshift(rest % size);
      rest = Math.floor(rest / size);
    }
    return `${name}[${index.join(", ")}] = ${found.value}`;
  }
  return null;
}

/** A message about the model's first weight that is not finite; null if all are finite. It reads all weights, so it is slow. */
export async function damagedWeights({ weights }: Decoder): Promise<string | null> {
  const value = await nonFiniteValue(weights);
  return (
    value &&
    `The model's own ${value}. Is its file damaged? Fetch or convert it again; where it was read as f16, try --dtype f32.`
  );
}

/** What helps where training makes values that are too large. */
export const SLOWER = "try a lower --learning-rate or a longer --warmup-steps";

/**
 * An `L-DIVERGED` error: `what` happened ("the logits of token 3 are not finite"), and which tensor is the cause. `cure`: what helps
 * where it is none.
 */
export async function notFinite(
  what: string,
  decoder: Decoder,
  adapter: Adapter | null,
  cure = `try --dtype f32, without --quantize${adapter ? ", or without the adapter" : ""}`,
): Promise<SidenetError> {
  const damaged = await damagedWeights(decoder);
  const trained = damaged ?? (adapter && (await nonFiniteValue(adapter.parameters)));
  const cause =
    damaged ??
    (trained
      ? `The adapter's ${trained}. Train it again, with a lower --learning-rate.`
      : `All weights are finite, so values grew too large on the way: ${cure}.`);
  return new SidenetError("L-DIVERGED", `${what}. ${cause}`);
}
