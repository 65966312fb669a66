// Who is slower: medians of ratios of neighbouring samples, and suspicions measured again before they are told.

export const median = (list) => {
  const sorted = [...list].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

/**
 * change / base of one row: of each round the least of a few samples each, which other load can only add to; of the rounds
 * the median. Order turns round from one round to the next. `sample` gives milliseconds.
 */
export async function ratioOf(sample, row, { rounds, each = 2 }) {
  const ratios = [];
  for (let round = 0; round < rounds; round++) {
    const least = { base: Number.POSITIVE_INFINITY, change: Number.POSITIVE_INFINITY };
    for (let i = 0; i < each; i++) {
      for (const side of (round + i) % 2 === 0 ? ["base", "change"] : ["change", "base"]) {
        least[side] = Math.min(least[side], await sample(side, row));
      }
    }
    ratios.push(least.change / least.base);
  }
  return median(ratios);
}

/** Whether all measurements together say slower, and no confirmation says that nothing is the matter. */
export function isSlower(ratios, threshold) {
  const [, ...confirmations] = ratios;
  return median(ratios) > 1 + threshold && confirmations.every((ratio) => ratio > 1 + threshold / 2);
}

/** One more measurement of a row. What a side cannot run ends it: `absent` on the base, `failed` on the change. */
async function measure(result, sample, rounds, threshold) {
  try {
    result.ratios.push(await ratioOf(sample, result.row, { rounds }));
    result.slower = isSlower(result.ratios, threshold);
  } catch (error) {
    if (error.side === undefined) throw error;
    result.slower = false;
    result[error.side === "base" ? "absent" : "failed"] = error.message;
  }
}

/**
 * Measures every row once, and what seems slower again in each of the confirmations, always in processes of its own (`open`
 * starts a pair). Rows have the ratios of all their measurements; past `deadline` (milliseconds of performance.now) a row that
 * was not begun stays without.
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
