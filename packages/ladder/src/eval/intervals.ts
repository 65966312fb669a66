/** Scores over a sample, with 95 % confidence intervals. */
import { Random } from "@sidenet/tensor";

/** A score that is a quotient of sums over items, such as right answers over questions, or nats over tokens. */
export interface Metric {
  readonly name: string;
  /** Each item's share of both sums; a bottom of 0: the item does not count. The same items, in one order, for all metrics. */
  readonly items: readonly { readonly top: number; readonly bottom: number }[];
  /** What the quotient is shown as; default itself. */
  readonly transform?: "exp";
}

/** A score with its interval of 95 %. */
export interface Estimate {
  readonly value: number;
  readonly low: number;
  readonly high: number;
  /** Items that count. */
  readonly count: number;
}

/** Standard normal quantile of 97.5 %. */
const Z = 1.959963984540054;
const RESAMPLES = 1000;

/** Of `successes` in `count` trials. Source: Wilson 1927, without continuity correction. */
export function wilson(successes: number, count: number): { low: number; high: number } {
  if (count === 0) return { low: 0, high: 1 };
  const p = successes / count;
  const z2 = Z * Z;
  const centre = (p + z2 / (2 * count)) / (1 + z2 / count);
  const half = (Z / (1 + z2 / count)) * Math.sqrt((p * (1 - p)) / count + z2 / (4 * count * count));
  // At the ends both are exact, which their rounded difference and sum are not.
  return {
    low: successes === 0 ? 0 : centre - half,
    high: successes === count ? 1 : centre + half,
  };
}

const shown = (metric: Metric, quotient: number): number =>
  metric.transform === "exp" ? Math.exp(quotient) : quotient;

function quotient({ items }: Metric, indices: Iterable<number>): number {
  let top = 0;
  let bottom = 0;
  for (const i of indices) {
    top += items[i].top;
    bottom += items[i].bottom;
  }
  return top / bottom;
}

/**
 * The 2.5 % and 97.5 % quantiles of a statistic over samples of the items, drawn with replacement; NaN for a single item.
 * Source: Efron 1979.
 */
function bootstrap(count: number, seed: number, statistic: (indices: Int32Array) => number) {
  if (count < 2) return { low: Number.NaN, high: Number.NaN }; // one item shows no spread
  const random = new Random(seed);
  const indices = new Int32Array(count);
  const values: number[] = [];
  for (let r = 0; r < RESAMPLES; r++) {
    for (let i = 0; i < count; i++) indices[i] = random.below(count);
    const value = statistic(indices);
    if (Number.isFinite(value)) values.push(value); // a sample may hold no item that has a say
  }
  values.sort((a, b) => a - b);
  const at = (share: number) => values[Math.floor(share * values.length)];
  return { low: at(0.025) ?? Number.NaN, high: at(0.975) ?? Number.NaN };
}

/** A proportion's interval is Wilson's, any other's comes from a bootstrap over items, by seed. */
export function estimate(metric: Metric, seed: number): Estimate {
  const { items } = metric;
  const having = items.filter(({ bottom }) => bottom !== 0);
  const value = shown(metric, quotient(metric, items.keys()));
  const isProportion =
    metric.transform === undefined &&
    having.every(({ top, bottom }) => bottom === 1 && (top === 0 || top === 1));
  const interval = isProportion
    ? wilson(
        having.reduce((sum, { top }) => sum + top, 0),
        having.length,
      )
    : bootstrap(items.length, seed, (indices) => shown(metric, quotient(metric, indices)));
  return { value, ...interval, count: having.length };
}

/** By how much the second of two scores over the same items is larger; both are drawn together, so what they share cancels. */
export function estimateDifference(before: Metric, after: Metric, seed: number): Estimate {
  const difference = (indices: Iterable<number>) => {
    const all = [...indices];
    return shown(after, quotient(after, all)) - shown(before, quotient(before, all));
  };
  return {
    value: difference(before.items.keys()),
    ...bootstrap(before.items.length, seed, difference),
    count: before.items.filter(({ bottom }) => bottom !== 0).length,
  };
}
