// Runs in each test file's process before it (vitest's setupFiles): how property tests draw their values.

import fc from "fast-check";

// The same values on every run, so a red build is red for a reason in the change; `npm run test:deep` draws
// new ones, and more. A failure prints its seed and path: SIDENET_SEED=<seed> repeats it.
const deep = process.env.SIDENET_TEST_DEPTH === "deep";
const seed = process.env.SIDENET_SEED ?? (deep ? Date.now() : 1);
fc.configureGlobal({ seed: Number(seed), ...(deep ? { numRuns: 1000 } : {}) });
