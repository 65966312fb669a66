import { defaultServerConditions } from "vite";
import { configDefaults, defineConfig } from "vitest/config";
import { ensureRuntimeFolder } from "./scripts/lib/environment.mjs";

ensureRuntimeFolder(); // before the workers start: they inherit it

// Packages import each other through their exports maps; "source" leads to src/*.ts, so no build is needed.
const conditions = ["source", ...defaultServerConditions];

// `vitest run --mode cpu|deep`: environment variables, set in a way that works in every shell.
const {
  SIDENET_RUNS = "5000",
  SIDENET_SECONDS = "20", // an op stops drawing after these, however many cases are left
  SIDENET_SEED = String(Date.now() % 2 ** 31),
} = process.env;
const MODES: Record<string, Record<string, string>> = {
  cpu: { SIDENET_DEVICE: "cpu" },
  deep: { SIDENET_RUNS, SIDENET_SECONDS, SIDENET_SEED },
};

const report = process.env.SIDENET_TEST_REPORT; // a file for .ci/run to count from

export default defineConfig(({ mode }) => ({
  ssr: { resolve: { conditions } },
  test: {
    include: ["packages/*/test/**/*.test.ts", "bench/test/**/*.test.ts", "scripts/test/**/*.test.ts"],
    exclude: [...configDefaults.exclude, "**/dist/**"],
    env: MODES[mode] ?? {},
    globalSetup: ["scripts/vitest-setup.mjs"],
    setupFiles: ["scripts/vitest-worker.ts"],
    pool: "forks", // Dawn lives in native memory: a crash must end one test file, not the run
    maxWorkers: 2, // a software GPU takes every core by itself
    testTimeout: mode === "deep" ? 3_600_000 : 120_000, // on a software GPU a first dispatch compiles its pipeline for seconds
    hookTimeout: 120_000,
    reporters: ["default", ...(report ? [["json", { outputFile: report }] as ["json", object]] : [])],
  },
}));
