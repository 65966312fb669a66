import { defaultServerConditions } from "vite";
import { configDefaults, defineConfig } from "vitest/config";
import { ensureRuntimeFolder } from "./scripts/lib/environment.mjs";

ensureRuntimeFolder(); // before the workers start: they inherit it

// Packages import each other through their exports maps; "source" leads to src/*.ts, so no build is needed.
const conditions = ["source", ...defaultServerConditions];

export default defineConfig({
  ssr: { resolve: { conditions } },
  test: {
    include: ["packages/*/test/**/*.test.ts", "bench/test/**/*.test.ts", "scripts/test/**/*.test.ts"],
    exclude: [...configDefaults.exclude, "**/dist/**"],
    globalSetup: ["scripts/vitest-setup.mjs"],
    pool: "forks", // Dawn lives in native memory: a crash must end one test file, not the run
    maxWorkers: 2, // a software GPU takes every core by itself
    testTimeout: 120_000, // on a software GPU a first dispatch compiles its pipeline for seconds
    hookTimeout: 120_000,
  },
});
