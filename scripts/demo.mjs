// Trains a Ladder side network beside a frozen model, on a small scale.
//
//   npm run demo                         the bundled model, within a minute on two cores; nothing is downloaded
//   npm run demo -- --model smollm2      SmolLM2-135M-Instruct on school arithmetic
//   npm run demo -- --steps 200          any other option of `sidenet train`

import { spawnSync } from "node:child_process";
import { asksForHelp, chooseDemo, DEMOS, demoArguments, demoHelp } from "./lib/demo-runs.mjs";
import { ROOT } from "./lib/environment.mjs";
import { headOf } from "./lib/options.mjs";
import { npm } from "./lib/packages.mjs";
import { SIDENET } from "./lib/sidenet.mjs";
import { reportFailure, requireSuccess } from "./lib/steps.mjs";
import { setupPackages } from "./setup.mjs";

async function demo() {
  const argv = process.argv.slice(2);
  if (asksForHelp(argv)) {
    console.log(demoHelp(headOf(process.argv[1])));
    return;
  }
  const { name, rest } = chooseDemo(argv);
  setupPackages(); // no driver: without a GPU sidenet runs on WebAssembly
  let model = name;
  if (name === "smollm2") {
    const { fetchModel } = await import("./fetch-model.mjs");
    model = await fetchModel();
  }
  requireSuccess(npm(ROOT, ["run", "--silent", "build"]), "The build failed.", ["npm run build"]);
  const args = demoArguments(name, model, rest);
  console.log(`\n${DEMOS[name].what}:\n\n$ npx sidenet ${args.join(" ")}\n`);
  const { status, signal } = spawnSync(process.execPath, [SIDENET, ...args], { cwd: ROOT, stdio: "inherit" });
  if (signal) console.error(`sidenet train was ended by ${signal}`);
  process.exitCode = status ?? 1;
}

try {
  await demo();
} catch (error) {
  reportFailure(error);
}
