// Decides which rows are slower: by medians of ratios of neighbouring samples, over several pairs of processes.

import { median } from "../shared.mjs";

/** Samples of each side in a round. The fastest counts, since other load can only slow one down. */
const SAMPLES = 2;

/**
 * The ratio change / base of one row in one pair of processes: the median over rounds of the ratio of their fastest samples. The
 * order of the two sides alternates. `sample` returns milliseconds.
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

/** Measures a row once more. If a side cannot run it, the reason becomes `absent` (of the base) or `failed` (of the change). */
async function measure(result, sample, rounds) {
  try {
    result.ratios.push(await ratioOf(sample, result.row, rounds));
  } catch (error) {
    if (error.side === undefined) throw error;
    result[error.side === "base" ? "absent" : "failed"] = error.message;
  }
}

/**
 * Measures every row in `pairs[0]` pairs of processes, and goes on to `pairs[1]` with those whose median exceeds half of the
 * threshold: a process may stay fast or slow for as long as it lives, so samples of one say little about the code. A row is
 * slower if the median over all pairs exceeds the threshold. `open(i)` starts pair i. Returns all ratios of each row. After
 * `deadline` (of performance.now) no row is begun, and only rows that seem slower are measured again.
 */
export async function judge(
  rows,
  open,
  { threshold, rounds, pairs, deadline = Infinity, note = (_text) => {} },
) {
  const results = rows.map((row) => ({ row, ratios: [], slower: false }));
  const isOpen = ({ ratios, absent, failed }) => {
    if (absent !== undefined || failed !== undefined) return false;
    const isFew = ratios.length < pairs[0] && performance.now() <= deadline;
    return isFew || (ratios.length > 0 && median(ratios) > 1 + threshold / 2);
  };
  for (let i = 0; i < pairs[1]; i++) {
    const left = results.filter(isOpen);
    if (left.length === 0) break;
    if (i === pairs[0]) note(`measured again: ${left.map(({ row }) => row).join(", ")}`);
    const { sample, close } = await open(i);
    try {
      for (const result of left) if (isOpen(result)) await measure(result, sample, rounds);
    } finally {
      await close();
    }
  }
  for (const result of results) {
    const { ratios } = result;
    result.slower = ratios.length === pairs[1] && median(ratios) > 1 + threshold;
  }
  return results;
}
