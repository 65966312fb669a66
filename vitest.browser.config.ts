import { defaultServerConditions } from "vite";
import { defineConfig } from "vitest/config";

// `npm run test:browser`: tests in Node with pages in a headless Chromium and Firefox (scripts/lib/chromium.mjs,
// firefox.mjs). A test is packages/*/test/browser/NAME.spec.ts; the code of its page stands beside it, NAME.page.ts.
const conditions = ["source", ...defaultServerConditions];
const report = process.env.SIDENET_TEST_REPORT; // a file for .ci/run to count from

export default defineConfig({
  ssr: { resolve: { conditions } },
  test: {
    include: ["packages/*/test/browser/**/*.spec.ts", "examples/**/*.spec.ts"],
    globalSetup: ["scripts/vitest-setup.mjs"],
    pool: "forks",
    maxWorkers: 1, // a page takes every core by itself
    testTimeout: 120_000,
    hookTimeout: 120_000,
    reporters: ["default", ...(report ? [["json", { outputFile: report }] as ["json", object]] : [])],
  },
});
