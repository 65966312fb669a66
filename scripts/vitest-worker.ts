// Runs before each test file in its process (vitest's setupFiles): seeds property tests, and fails tests that leak tensors.

import { MemoryAccount } from "@sidenet/tensor";
import fc from "fast-check";
import { afterEach, beforeEach, expect } from "vitest";

// The same values on every run, so that a build fails only because of a change. SIDENET_SEED and SIDENET_RUNS draw others and
// more. A failure prints its seed.
const { SIDENET_SEED: seed = "1", SIDENET_RUNS: runs } = process.env;
fc.configureGlobal({
  seed: Number(seed),
  defaultSizeToMaxWhenMaxSpecified: true, // else a `maxLength` of 60 draws ten at most
  ...(runs ? { numRuns: Number(runs) } : {}),
});

// Every test must end with at most as many live tensors as it began with, on every device that it used.
const begun = new Map<MemoryAccount, number>();
const { reserve } = MemoryAccount.prototype;
MemoryAccount.prototype.reserve = function (allocation) {
  if (!begun.has(this)) begun.set(this, this.liveCount);
  reserve.call(this, allocation);
};
beforeEach(() => begun.clear());
afterEach(({ task }) => {
  if (task.result?.state === "fail") return; // a failed test leaves tensors behind, and its own message is the better one
  for (const [account, before] of begun) {
    const labels = [...account.allocations()].slice(before).map(({ label }) => label);
    expect(account.liveCount, `tensors left behind: ${labels.join(", ")}`).toBeLessThanOrEqual(before);
  }
});
