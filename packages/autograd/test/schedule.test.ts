import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { makeSchedule, type ScheduleOptions } from "../src/index.ts";
import { expectCode, propertyRuns } from "./support.ts";

const options = fc
  .record({
    kind: fc.constantFrom("constant" as const, "linear" as const, "cosine" as const),
    lr: fc.double({ min: 1e-6, max: 1, noNaN: true }),
    totalSteps: fc.integer({ min: 1, max: 200 }),
    warmup: fc.double({ min: 0, max: 1, noNaN: true }),
    final: fc.double({ min: 0, max: 1, noNaN: true }),
  })
  .map(({ kind, lr, totalSteps, warmup, final }) => ({
    kind,
    lr,
    totalSteps,
    warmupSteps: Math.floor(warmup * totalSteps),
    finalLr: final * lr,
  }));

describe("a schedule", () => {
  it("rises to lr by its last warm-up step, never rises after, and stays between finalLr and lr", () => {
    fc.assert(
      fc.property(options, (o) => {
        const schedule = makeSchedule(o);
        const rates = Array.from({ length: o.totalSteps + 3 }, (_, step) => schedule(step));
        const peak = Math.max(0, o.warmupSteps - 1);
        expect(rates[peak]).toBeCloseTo(o.lr, 12);
        for (const [step, rate] of rates.entries()) {
          expect(rate).toBeGreaterThan(0 - Number(o.finalLr === 0 && step >= o.totalSteps));
          expect(rate).toBeLessThanOrEqual(o.lr * (1 + 1e-12));
          if (step > 0 && step <= peak) expect(rate).toBeGreaterThan(rates[step - 1]);
          if (step > peak) expect(rate).toBeLessThanOrEqual(rates[step - 1] * (1 + 1e-12));
          if (step >= o.warmupSteps) expect(rate).toBeGreaterThanOrEqual(o.finalLr * (1 - 1e-12));
        }
        expect(rates[o.totalSteps]).toBeCloseTo(o.kind === "constant" ? o.lr : o.finalLr, 12);
      }),
      propertyRuns(200),
    );
  });

  it("is half way down in the middle", () => {
    for (const kind of ["linear", "cosine"] as const) {
      const schedule = makeSchedule({ kind, lr: 1, warmupSteps: 10, totalSteps: 110 });
      expect(schedule(60)).toBeCloseTo(0.5, 12);
      expect(schedule(35)).toBeCloseTo(kind === "linear" ? 0.75 : (1 + Math.SQRT1_2) / 2, 12);
    }
  });

  it("needs no number of steps when it is constant", () => {
    const schedule = makeSchedule({ kind: "constant", lr: 3, warmupSteps: 2 });
    expect([0, 1, 2, 1e6].map(schedule)).toEqual([1.5, 3, 3, 3]);
  });

  it("refuses options out of range with A-SCHEDULE", () => {
    const good: ScheduleOptions = { kind: "cosine", lr: 1, totalSteps: 10 };
    const bad: Partial<Record<keyof ScheduleOptions, unknown>>[] = [
      { kind: "cosin" },
      { kind: "toString" },
      { lr: -1 },
      { lr: Number.NaN },
      { finalLr: 2 },
      { finalLr: -1 },
      { warmupSteps: -1 },
      { warmupSteps: 1.5 },
      { warmupSteps: 11 },
      { totalSteps: 0 },
      { totalSteps: undefined },
      { totalSteps: Number.POSITIVE_INFINITY },
    ];
    for (const change of bad) {
      expectCode("A-SCHEDULE", () => makeSchedule({ ...good, ...change } as ScheduleOptions));
    }
    for (const step of [-1, 0.5, Number.NaN]) expectCode("A-SCHEDULE", () => makeSchedule(good)(step));
  });
});
