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

/**
 * Rows with the ratios of all their measurements, and whether the change is slower by more than the threshold: in the first
 * measurement and in each of the confirmations, every one with processes of its own (`open` starts a pair).
 */
export async function judge(rows, open, { threshold, rounds, confirmations, note = () => {} }) {
  const found = new Map(rows.map((row) => [row, { row, ratios: [], slower: true }]));
  const stages = [rounds, ...confirmations];
  for (const [stage, count] of stages.entries()) {
    const suspects = [...found.values()].filter(({ slower }) => slower);
    if (suspects.length === 0) break;
    if (stage > 0) note(`measured again: ${suspects.map(({ row }) => row).join(", ")}`);
    const { sample, close } = await open();
    try {
      for (const suspect of suspects) {
        const ratio = await ratioOf(sample, suspect.row, { rounds: count });
        suspect.ratios.push(ratio);
        suspect.slower = ratio > 1 + threshold;
      }
    } finally {
      await close();
    }
  }
  return [...found.values()];
}
