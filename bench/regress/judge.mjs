// Decides which rows are slower: by medians of ratios of neighbouring samples, and only if later measurements confirm them.

import { median } from "../shared.mjs";

/** Samples of each side in a round. The fastest counts, since other load can only slow one down. */
const SAMPLES = 2;

/**
 * The ratio change / base of one row: the median over rounds of the ratio of their fastest samples. The order of the two sides
 * alternates. `sample` returns milliseconds.
 */
async function ratioOf(sample, row, rounds) {
  const ratios = [];
  for (let round = 0; round < rounds; round++) {
    const least = { base: Number.POSITIVE_INFINITY, change: Number.POSITIVE_INFINITY };
    for (let i = 0; i < SAMPLES; i++) {
      for (const side of (round + i) % 2 === 0 ? ["base", "change"] : ["change", "base"]) {
        least[side] = Math.min(least[side], await sample(side, row));
      }
    }
    ratios.push(least.change / least.base);
  }
  return median(ratios);
}

/** Whether the median of all measurements exceeds the threshold, and every confirmation at least half of it. */
export function isSlower(ratios, threshold) {
  const [, ...confirmations] = ratios;
  return median(ratios) > 1 + threshold && confirmations.every((ratio) => ratio > 1 + threshold / 2);
}

/** Measures a row once more. If a side cannot run it, the reason becomes `absent` (of the base) or `failed` (of the change). */
async function measure(result, sample, rounds, threshold) {
  try {
    result.ratios.push(await ratioOf(sample, result.row, rounds));
    result.slower = isSlower(result.ratios, threshold);
  } catch (error) {
    if (error.side === undefined) throw error;
    result.slower = false;
    result[error.side === "base" ? "absent" : "failed"] = error.message;
  }
}

/**
 * Measures every row once, and those that seem slower again in each confirmation, always in new processes (`open` starts a
 * pair). Returns all ratios of each row. A row that is not begun before `deadline` (of performance.now) has none.
 */
export async function judge(
  rows,
  open,
  { threshold, rounds, confirmations, deadline = Infinity, note = () => {} },
) {
  const results = rows.map((row) => ({ row, ratios: [], slower: true }));
  for (const [stage, count] of [rounds, ...confirmations].entries()) {
    const suspects = results.filter(({ slower }) => slower);
    if (suspects.length === 0) break;
    if (stage > 0) note(`measured again: ${suspects.map(({ row }) => row).join(", ")}`);
    const { sample, close } = await open();
    try {
      for (const suspect of suspects) {
        if (stage === 0 && performance.now() > deadline) suspect.slower = false;
        else await measure(suspect, sample, count, threshold);
      }
    } finally {
      await close();
    }
  }
  return results;
}
