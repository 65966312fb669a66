// A Python interpreter with the packages that a check needs.

import { join } from "node:path";
import { reportFailure, requireSuccess, run, SetupError } from "./steps.mjs";
import { withFolder } from "./work-folder.mjs";

/**
 * The path of a Python that imports all of `packages`: the `given` one, or that of a virtual environment that is made in
 * `folder` (torch alone takes gigabytes). Throws `SetupError`.
 */
export function findPython(given, packages, folder) {
  if (given !== undefined) {
    const { output, failed } = run(given, ["-c", `import ${packages.join(", ")}`]);
    if (!failed) return given;
    const why = output.trim().split("\n").at(-1) || failed;
    throw new SetupError(`--python ${given} cannot import what this script needs.`, why, [
      `${given} -m pip install ${packages.join(" ")}   # or leave --python out: an environment is made then`,
    ]);
  }
  const venv = join(folder, "venv");
  requireSuccess(run("python3", ["-m", "venv", venv]), "python3 made no virtual environment.");
  const python = join(venv, process.platform === "win32" ? "Scripts/python.exe" : "bin/python");
  const installed = run(python, ["-m", "pip", "install", "--quiet", ...packages]);
  requireSuccess(installed, `pip could not install ${packages.join(", ")}.`);
  return python;
}

/**
 * Runs `compare(python, folder)`, which returns how many cases differ, and sets the exit code: 1 where some do, or where it
 * fails. Its files stay in the folder `keep`, if there is one.
 */
export async function compareWithPython({ python: given, keep }, packages, compare) {
  try {
    await withFolder(null, async (folder) => {
      const python = findPython(given, packages, folder);
      const failed = await withFolder(keep, (work) => compare(python, work));
      process.exitCode = failed === 0 ? 0 : 1;
    });
  } catch (error) {
    reportFailure(error);
  }
}
