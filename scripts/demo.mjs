// The main job on a small scale: train a Ladder side network beside a frozen SmolLM2-135M on school arithmetic.

import { spawnSync } from "node:child_process";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { fetchModel } from "./fetch-model.mjs";
import { npm } from "./lib/packages.mjs";
import { reportFailure, SetupError, say } from "./lib/steps.mjs";
import { setup } from "./setup.mjs";

const ROOT = resolve(fileURLToPath(import.meta.url), "../..");

async function demo() {
  const adapter = setup({ adapter: "preferred" });
  say(adapter === null ? "WebGPU has no adapter here" : `WebGPU on ${adapter}`);
  const model = await fetchModel();
  const build = npm(ROOT, ["run", "--silent", "build"]);
  if (build.failed) {
    throw new SetupError("The build failed.", `${build.failed}\n${build.output}`, ["npm run build"]);
  }

  const args = ["--model", model, "--data", "examples/data/gsm8k-sample.jsonl", "--method", "ladder"];
  args.push("--output", "out/demo", "--device", "auto"); // a hardware GPU, else WebAssembly
  // Small enough for a few minutes on two cores, and large enough to see the loss fall.
  args.push("--steps", "20", "--batch-size", "2", "--held-out", "8", "--learning-rate", "0.01");
  console.log(`\n$ npx sidenet train ${args.join(" ")}\n`);
  const { status, signal } = spawnSync(
    process.execPath,
    ["packages/ladder/bin/sidenet.js", "train", ...args, ...process.argv.slice(2)],
    { cwd: ROOT, stdio: "inherit" },
  );
  if (signal) console.error(`sidenet train was ended by ${signal}`);
  process.exitCode = status ?? 1;
}

try {
  await demo();
} catch (error) {
  reportFailure(error);
}
