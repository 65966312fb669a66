// Runs in each test file's process before it (vitest's setupFiles): how property tests draw, and no test may leak.

import { MemoryAccount } from "@sidenet/tensor";
import fc from "fast-check";
import { afterEach, beforeEach, expect } from "vitest";

// The same values on every run, so that a red build is red for a reason in the change. `npm run test:deep` draws
// new ones, and more. A failure prints its seed: SIDENET_SEED=<seed> repeats it.
const { SIDENET_SEED: seed = "1", SIDENET_RUNS: runs } = process.env;
fc.configureGlobal({ seed: Number(seed), ...(runs ? { numRuns: Number(runs) } : {}) });

// Every test ends with as many live tensors as it began with, on every device it used: a leak is a failure of its own.
const begun = new Map<MemoryAccount, number>();
const { reserve } = MemoryAccount.prototype;
MemoryAccount.prototype.reserve = function (allocation) {
  if (!begun.has(this)) begun.set(this, this.liveCount);
  reserve.call(this, allocation);
};
beforeEach(() => begun.clear());
afterEach(({ task }) => {
  if (task.result?.state === "fail") return; // an exception leaves things behind, and is the better message
  for (const [account, before] of begun) {
    const labels = [...account.allocations()].slice(before).map(({ label }) => label);
    expect(account.liveCount, `tensors left behind: ${labels.join(", ")}`).toBeLessThanOrEqual(before);
  }
});
