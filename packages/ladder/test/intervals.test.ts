import { Random } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { estimate, estimateDifference, type Metric, wilson } from "../src/eval/intervals.ts";

describe("an interval", () => {
  const share = (right: readonly number[]): Metric => ({
    name: "accuracy",
    items: right.map((top) => ({ top, bottom: 1 })),
  });

  it("of a share is Wilson's", () => {
    // Values of SciPy 1.17: binomtest(8, 10).proportion_ci(method="wilson"), and of (0, 5).
    expect(wilson(8, 10).low).toBeCloseTo(0.4901625, 6);
    expect(wilson(8, 10).high).toBeCloseTo(0.9433178, 6);
    expect(wilson(0, 0)).toEqual({ low: 0, high: 1 });
    expect(wilson(0, 5)).toEqual({ low: 0, high: expect.closeTo(0.4344825, 6) });
    for (let n = 1; n < 100; n++) {
      expect(wilson(n, n).high, `${n}`).toBe(1); // not 1 + 2^-52, nor 1 - 2^-53
      expect(wilson(0, n).low, `${n}`).toBe(0);
    }
    expect(estimate(share([1, 1, 0, 1]), 0)).toMatchObject({ value: 0.75, count: 4, ...wilson(3, 4) });
  });

  it("of what is no share of the items is not Wilson's, even where all are 0 or 1", () => {
    const tops = [1, 1, 1, 1, 1, 1, 1, 1];
    const perplexity: Metric = { ...share(tops), transform: "exp" };
    expect(estimate(perplexity, 0)).toMatchObject({ value: Math.E, low: Math.E, high: Math.E });
    const ofTwo = { name: "x", items: tops.map((top) => ({ top, bottom: 2 })) };
    expect(estimate(ofTwo, 0)).toMatchObject({ value: 0.5, low: 0.5, high: 0.5 });
  });

  it("of a mean is near the normal one, the same for the same seed", () => {
    const random = new Random(5);
    const items = Array.from(random.normals(400, 2), (top) => ({ top: 10 + top, bottom: 1 }));
    const metric = { name: "x", items };
    const { value, low, high } = estimate(metric, 1);
    const half = (1.96 * 2) / Math.sqrt(400);
    expect(low).toBeGreaterThan(value - 1.35 * half);
    expect(low).toBeLessThan(value - 0.75 * half);
    expect(high - value).toBeGreaterThan(0.75 * half);
    expect(high - value).toBeLessThan(1.35 * half);
    expect(estimate(metric, 1)).toEqual(estimate(metric, 1));
    expect(estimate({ ...metric, transform: "exp" }, 1).value).toBeCloseTo(Math.exp(value));
  });

  it("of a mean over one item is unknown", () => {
    const one = { name: "x", items: [{ top: 3, bottom: 2 }] };
    expect(estimate(one, 0)).toEqual({ value: 1.5, low: Number.NaN, high: Number.NaN, count: 1 });
    expect(estimateDifference(one, one, 0)).toMatchObject({ value: 0, low: Number.NaN });
  });

  it("of a difference is of pairs: what both have in common cancels", () => {
    const before = Array.from({ length: 60 }, (_, i) => Number(i % 2 === 0));
    const after = before.map((right, i) => (i < 6 ? 1 : right));
    const { value, low, high } = estimateDifference(share(before), share(after), 0);
    expect(value).toBeCloseTo(3 / 60);
    expect(low).toBeGreaterThanOrEqual(0);
    expect(high).toBeLessThan(0.13); // two shares apart would give 0.23
    expect(estimateDifference(share(before), share(before), 0)).toMatchObject({ value: 0, low: 0, high: 0 });
  });

  it("leaves out the draws in which no item counts", () => {
    const of = (tops: readonly number[]): Metric => ({
      name: "accuracy of few",
      items: Array.from({ length: 8 }, (_, i) => ({ top: tops[i] ?? 0, bottom: Number(i < tops.length) })),
    });
    const { value, low, high, count } = estimateDifference(of([0, 1]), of([1, 1]), 0);
    expect([value, low, high, count]).toEqual([0.5, 0, 1, 2]);
  });
});
