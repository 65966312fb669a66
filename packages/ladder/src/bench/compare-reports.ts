/** Compares a run of the benchmarks with an earlier one. */

/** The part of a report that is compared. */
interface ComparableReport {
  readonly results: readonly { readonly name: string; readonly wall: { readonly minMs: number } }[];
  readonly failures: readonly { readonly name: string }[];
}

/** `missing`: only in the earlier run; `new`: only in the later one; `failed`: timed earlier, but not in the later run. */
type Verdict = "faster" | "slower" | "same" | "failed" | "missing" | "new";

export interface ComparedRow {
  readonly name: string;
  readonly verdict: Verdict;
  /** Lowest wall time of a call, in milliseconds. */
  readonly beforeMs: number | null;
  readonly afterMs: number | null;
  /** after / before. */
  readonly ratio: number | null;
}

function verdictOn(ratio: number, threshold: number): Verdict {
  if (ratio > 1 + threshold) return "slower";
  return ratio < 1 / (1 + threshold) ? "faster" : "same";
}

/**
 * The rows of both runs by name, in the later one's order. Lowest times are compared, since other load can only add to a time.
 * Rows that differ by less than the share `threshold` are `same`.
 */
export function compareReports(
  before: ComparableReport,
  after: ComparableReport,
  threshold: number,
): ComparedRow[] {
  const old = new Map(before.results.map(({ name, wall }) => [name, wall.minMs]));
  const rows: ComparedRow[] = after.results.map(({ name, wall: { minMs: afterMs } }) => {
    const beforeMs = old.get(name);
    if (beforeMs === undefined) return { name, verdict: "new", beforeMs: null, afterMs, ratio: null };
    const ratio = afterMs / beforeMs;
    return { name, verdict: verdictOn(ratio, threshold), beforeMs, afterMs, ratio };
  });
  const timed = new Set(after.results.map(({ name }) => name));
  const failed = new Set(after.failures.map(({ name }) => name));
  for (const [name, beforeMs] of old) {
    if (timed.has(name)) continue;
    const verdict = failed.has(name) ? "failed" : "missing";
    rows.push({ name, verdict, beforeMs, afterMs: null, ratio: null });
  }
  return rows;
}

/** The first report, with each row replaced by the second run's if that is faster. */
export function keepFaster<R extends ComparableReport>(first: R, second: R): R {
  const others = new Map(second.results.map((row) => [row.name, row]));
  const results = first.results.map((row) => {
    const other = others.get(row.name);
    return other !== undefined && other.wall.minMs < row.wall.minMs ? other : row;
  });
  return { ...first, results };
}
