// Golden cases with other shapes, seeds and configurations than the folder's: PyTorch computes in double what golden/README.md
// and methods.md say, and `sidenet check` is held to it on every device.
//
//   npm run build && node scripts/random-golden.mjs [--seed 1] [--ops 105] [--models 12] [--adapters 24] [--python FILE]
//                                                   [--devices cpu,webgpu,wasm] [--keep DIR]
//
// The same seed and counts make the same cases. --python names one that has torch and numpy; without it a throw-away virtual
// environment is made (gigabytes). --keep writes the cases there and leaves them. Not part of CI.

import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { scriptOptions, usageError } from "./lib/options.mjs";
import { reportFailure, run, SetupError } from "./lib/steps.mjs";

const GENERATOR = fileURLToPath(new URL("golden/generate.py", import.meta.url));
const SIDENET = fileURLToPath(new URL("../packages/ladder/bin/sidenet.js", import.meta.url));
const PACKAGES = ["torch", "numpy"];
const KINDS = ["ops", "models", "adapters"];

const DEVICES = ["cpu", "webgpu", "wasm"];

/** What is asked for, before minutes are spent on half of it. */
function readOptions() {
  const options = scriptOptions({
    ...{ seed: 1, ops: 105, models: 12, adapters: 24 },
    ...{ python: null, devices: DEVICES, keep: null },
  });
  const { ops, models, adapters, devices } = options;
  const most = 1e9;
  const over = ["seed", ...KINDS].find((name) => options[name] >= most);
  if (over !== undefined) usageError(`--${over} ${options[over]}: wanted less than ${most}`);
  if (adapters > 0 && models === 0) usageError("--adapters wants models to be made for: --models 1 or more");
  if (ops + models === 0) usageError("no case is asked for: --ops or --models 1 or more");
  const unknown = devices.find((name) => !DEVICES.includes(name));
  if (unknown !== undefined) usageError(`--devices ${unknown}: there are ${DEVICES.join(", ")}`);
  return options;
}

/** An interpreter with the packages, in `work` unless one is given. */
function python({ python: given }, work) {
  if (given !== undefined) {
    const tried = run(given, ["-c", `import ${PACKAGES.join(", ")}`]);
    if (!tried.failed) return given;
    const why = tried.output.trim().split("\n").at(-1) || tried.failed;
    throw new SetupError(`--python ${given} cannot make the cases.`, why, [
      `${given} -m pip install ${PACKAGES.join(" ")}   # or leave --python out: an environment is made then`,
    ]);
  }
  const venv = join(work, "venv");
  const made = run("python3", ["-m", "venv", venv]);
  if (made.failed) throw new SetupError("No virtual environment.", `${made.failed}\n${made.output}`);
  const binary = join(venv, process.platform === "win32" ? "Scripts/python.exe" : "bin/python");
  const installed = run(binary, ["-m", "pip", "install", "--quiet", ...PACKAGES]);
  if (installed.failed) throw new SetupError("pip failed.", `${installed.failed}\n${installed.output}`);
  return binary;
}

function generate(options, binary, folder) {
  const counts = KINDS.flatMap((kind) => [`--${kind}`, String(options[kind])]);
  const made = run(binary, ["-B", GENERATOR, folder, "--seed", String(options.seed), ...counts]);
  if (made.failed) throw new SetupError("The cases were not made.", `${made.failed}\n${made.output}`);
}

/** What `sidenet check` says of the folder, the object of its last line. */
function check(folder, device, dtype) {
  const done = run(process.execPath, [
    SIDENET,
    "check",
    folder,
    "--device",
    device,
    "--dtype",
    dtype,
    "--json",
  ]);
  const last = done.stdout.trimEnd().split("\n").at(-1) ?? "";
  const found = last.startsWith("{") ? JSON.parse(last) : {};
  if (found.cases === undefined)
    throw new SetupError(`${device} ${dtype} was not checked.`, `${done.failed}\n${done.output}`);
  return found;
}

/** Skipped for another reason than that float16 makes no sense of it: the case or the check is wrong. */
const isOdd = ({ status, reason }) => status === "skipped" && !reason.includes("not meant for float16");

function report({ devices }, folder) {
  let odd = 0;
  for (const device of devices) {
    for (const dtype of ["f32", "f16"]) {
      const { passed, failed, skipped, adapter, cases } = check(folder, device, dtype);
      console.log(
        `${device} ${dtype}: ${passed} passed, ${failed} failed, ${skipped} skipped   (${adapter ?? device})`,
      );
      const listed = cases.filter((item) => item.status === "failed" || isOdd(item));
      for (const { name, status, reason } of listed) console.log(`  ${status} ${name}: ${reason}`);
      odd += listed.length;
    }
  }
  return odd;
}

/** A folder to write to: what lies there already would be checked as well. */
function kept({ keep }) {
  const folder = resolve(keep);
  if (existsSync(folder) && readdirSync(folder).length > 0)
    throw new SetupError("Nothing was made.", `${folder} is not empty.`);
  return folder;
}

try {
  const options = readOptions();
  const work = mkdtempSync(join(tmpdir(), "sidenet-golden-"));
  try {
    const folder = options.keep ? kept(options) : join(work, "cases");
    generate(options, python(options, work), folder);
    process.exitCode = report(options, folder) === 0 ? 0 : 1;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
} catch (error) {
  reportFailure(error);
}
