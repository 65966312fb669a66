// The main job on a small scale: train a Ladder side network beside a frozen model.
//
//   npm run demo                         the bundled model, within a minute on two cores; nothing is downloaded
//   npm run demo -- --model smollm2      SmolLM2-135M-Instruct on school arithmetic
//   npm run demo -- --steps 200          any option of `sidenet train` besides

import { spawnSync } from "node:child_process";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { chooseDemo, DEMOS, demoArguments } from "./lib/demo-runs.mjs";
import { npm } from "./lib/packages.mjs";
import { reportFailure, SetupError } from "./lib/steps.mjs";
import { setupPackages } from "./setup.mjs";

const ROOT = resolve(fileURLToPath(import.meta.url), "../..");

async function demo() {
  const { name, rest } = chooseDemo(process.argv.slice(2));
  setupPackages(); // sidenet takes a GPU if it finds one, and else WebAssembly: no driver is installed for it
  let model = name;
  if (name === "smollm2") {
    const { fetchModel } = await import("./fetch-model.mjs");
    model = await fetchModel();
  }
  const build = npm(ROOT, ["run", "--silent", "build"]);
  if (build.failed) {
    throw new SetupError("The build failed.", `${build.failed}\n${build.output}`, ["npm run build"]);
  }
  const args = demoArguments(name, model, rest);
  console.log(`\n${DEMOS[name].what}:\n\n$ npx sidenet ${args.join(" ")}\n`);
  const command = ["packages/ladder/bin/sidenet.js", ...args];
  const { status, signal } = spawnSync(process.execPath, command, { cwd: ROOT, stdio: "inherit" });
  if (signal) console.error(`sidenet train was ended by ${signal}`);
  process.exitCode = status ?? 1;
}

try {
  await demo();
} catch (error) {
  reportFailure(error);
}
