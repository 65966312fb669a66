// Makes random golden cases, with shapes, seeds and configurations that no fixed folder of cases has, and runs `sidenet check`
// on them on every device. PyTorch computes the expected values in double.
//
//   npm run build && node scripts/random-golden.mjs [--seed 1] [--ops 105] [--models 12] [--adapters 24] [--python FILE]
//                                                   [--devices cpu,webgpu,wasm] [--keep DIR]
//
// The same seed and counts make the same cases. --python is a Python with torch and numpy; without it, a temporary virtual
// environment is made (gigabytes). With --keep, the cases stay in that folder. Not part of CI.

import { existsSync, readdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { ROOT } from "./lib/environment.mjs";
import { scriptOptions, usageError } from "./lib/options.mjs";
import { findPython } from "./lib/python.mjs";
import { sidenet } from "./lib/sidenet.mjs";
import { reportFailure, requireSuccess, run, SetupError } from "./lib/steps.mjs";
import { withFolder } from "./lib/work-folder.mjs";

const GENERATOR = join(ROOT, "scripts/golden/generate.py");
const PACKAGES = ["torch", "numpy"];
const KINDS = ["ops", "models", "adapters"];

const DEVICES = ["cpu", "webgpu", "wasm"];

/** The options, all checked before anything is made. */
function readOptions() {
  const options = scriptOptions({
    seed: 1,
    ops: 105,
    models: 12,
    adapters: 24,
    python: null,
    devices: DEVICES,
    keep: null,
  });
  const { ops, models, adapters, devices } = options;
  if (adapters > 0 && models === 0) usageError("--adapters wants models to be made for: --models 1 or more");
  if (ops + models === 0) usageError("no case is asked for: --ops or --models 1 or more");
  const unknown = devices.find((name) => !DEVICES.includes(name));
  if (unknown !== undefined) usageError(`--devices ${unknown}: there are ${DEVICES.join(", ")}`);
  return options;
}

function generate(options, folder) {
  const python = findPython(options.python, PACKAGES, folder);
  const cases = options.keep ? resolve(options.keep) : join(folder, "cases");
  if (existsSync(cases) && readdirSync(cases).length > 0)
    throw new SetupError("No cases were made.", `${cases} is not empty, and its cases would be checked too.`);
  const counts = KINDS.flatMap((kind) => [`--${kind}`, String(options[kind])]);
  const made = run(python, ["-B", GENERATOR, cases, "--seed", String(options.seed), ...counts]);
  requireSuccess(made, "The cases could not be made.");
  return cases;
}

/** The result of `sidenet check`, which exits with 1 if a case fails. */
function check(folder, device, dtype) {
  const { result, failed, output } = sidenet(["check", folder, "--device", device, "--dtype", dtype]);
  if (!result?.cases) throw new SetupError(`${device} ${dtype} was not checked.`, `${failed}\n${output}`);
  return result;
}

/** Whether a case was skipped though it has tolerances for the dtype: then the case or the check is wrong. */
const isSkippedByError = ({ status, reason }) =>
  status === "skipped" && !reason.includes("not meant for float16");

/** Prints the results of every device, and returns the number of wrong cases. */
function report({ devices }, folder) {
  let wrong = 0;
  for (const device of devices) {
    for (const dtype of ["f32", "f16"]) {
      const { passed, failed, skipped, adapter, cases } = check(folder, device, dtype);
      console.log(
        `${device} ${dtype}: ${passed} passed, ${failed} failed, ${skipped} skipped   (${adapter ?? device})`,
      );
      const listed = cases.filter((item) => item.status === "failed" || isSkippedByError(item));
      for (const { name, status, reason } of listed) console.log(`  ${status} ${name}: ${reason}`);
      wrong += listed.length;
    }
  }
  return wrong;
}

try {
  const options = readOptions();
  await withFolder(null, (folder) => {
    process.exitCode = report(options, generate(options, folder)) === 0 ? 0 : 1;
  });
} catch (error) {
  reportFailure(error);
}
