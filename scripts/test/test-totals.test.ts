import { describe, expect, it } from "vitest";
import { testTotals } from "../test-totals.mjs";

const file = (status: string, ...tests: string[]) => ({
  status,
  assertionResults: tests.map((each) => ({ status: each })),
});
const good = { testResults: [file("passed", "passed", "passed"), file("passed", "passed", "skipped")] };

describe("testTotals", () => {
  it("adds files up", () => {
    expect(testTotals([{ report: good, exit: 0 }], 0)).toEqual({ passed: 3, failed: 0, skipped: 1 });
  });

  it("adds several runs up, and counts one that reported nothing", () => {
    const run = { report: good, exit: 0 };
    expect(testTotals([run, run], 0)).toEqual({ passed: 6, failed: 0, skipped: 2 });
    expect(testTotals([run, { report: null, exit: 0 }], 0)).toEqual({ passed: 3, failed: 1, skipped: 1 });
  });

  it("counts a file that could not be loaded", () => {
    const report = { testResults: [...good.testResults, file("failed"), file("failed", "failed", "passed")] };
    expect(testTotals([{ report, exit: 1 }], 0)).toEqual({ passed: 4, failed: 2, skipped: 1 });
  });

  it("fails where no test ran, the run broke off or the check failed", () => {
    expect(testTotals([{ report: { testResults: [] }, exit: 0 }], 0).failed).toBe(1);
    expect(testTotals([{ report: null, exit: 1 }], 1).failed).toBe(2);
    expect(testTotals([{ report: good, exit: 1 }], 0).failed).toBe(1); // an unhandled error ends the run with 1, and no test with "failed"
    expect(testTotals([{ report: good, exit: 0 }], 1).failed).toBe(1);
  });
});
