// Runs in each test file's process before it (vitest's setupFiles): how property tests draw their values.

import fc from "fast-check";

// The same values on every run, so that a red build is red for a reason in the change. `npm run test:deep` draws
// new ones, and more. A failure prints its seed: SIDENET_SEED=<seed> repeats it.
const { SIDENET_SEED: seed = "1", SIDENET_RUNS: runs } = process.env;
fc.configureGlobal({ seed: Number(seed), ...(runs ? { numRuns: Number(runs) } : {}) });
