// What would be published: the packages of the workspace, and their tarballs.

import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { npm } from "./packages.mjs";
import { SetupError } from "./steps.mjs";

/** Every package, lowest layer first: its folder, and its package.json. */
export function listPublished(root) {
  const folders = ["kernels", ...readdirSync(join(root, "packages")).map((name) => `packages/${name}`)];
  return folders.map((folder) => ({
    folder,
    manifest: JSON.parse(readFileSync(join(root, folder, "package.json"), "utf8")),
  }));
}

/** `npm pack` of every package into `folder`, which is emptied first; returns each name with its tarball. They must be built. */
export function packPublished(root, folder) {
  const published = listPublished(root);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const workspaces = published.flatMap((one) => ["--workspace", one.folder]);
  const args = ["pack", "--ignore-scripts", "--pack-destination", folder, ...workspaces];
  const { output, failed } = npm(root, args);
  if (failed)
    throw new SetupError("The packages could not be packed.", `${failed}\n${output}`, ["npm run build"]);
  return published.map(({ manifest: { name, version } }) => ({
    name,
    tarball: join(folder, `${name.replace("@", "").replace("/", "-")}-${version}.tgz`),
  }));
}
