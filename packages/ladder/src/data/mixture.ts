/** Several data sets as one, each with a weight. */

import type { TokenDataset } from "./batch-stream.ts";
import type { TokenRecord } from "./records.ts";

/** The largest number of repeats per epoch of a record of the set with the smallest weight. */
const MAX_REPEATS = 20;

/**
 * How often each record of a set appears in an epoch: small whole numbers close to the ratio of the weights, which must be
 * above 0. Whole numbers, so that all records of a set appear equally often.
 */
export function repeatsOf(weights: readonly number[]): number[] {
  const least = Math.min(...weights);
  const ratios = weights.map((weight) => weight / least);
  let best = ratios.map(Math.round);
  let bestError = Number.POSITIVE_INFINITY;
  for (let scale = 1; scale <= MAX_REPEATS; scale++) {
    const repeats = ratios.map((ratio) => Math.round(ratio * scale));
    const error = Math.max(...repeats.map((count, i) => Math.abs(count / (ratios[i] * scale) - 1)));
    if (error >= bestError - 1e-9) continue;
    best = repeats;
    bestError = error;
  }
  return best;
}

/** A data set in which each record of `sets[i]` appears `repeatsOf(weights)[i]` times per epoch. */
export function mixture(sets: readonly TokenDataset[], weights: readonly number[]): TokenDataset {
  const repeats = repeatsOf(weights);
  const ends: number[] = [];
  for (const [i, { length }] of sets.entries()) ends.push((ends.at(-1) ?? 0) + length * repeats[i]);
  return {
    length: ends.at(-1) ?? 0,
    async get(index): Promise<TokenRecord> {
      const set = sets[ends.findIndex((end) => index < end)];
      return set.get(index % set.length); // its part of the epoch is a whole number of its lengths
    },
  };
}
