// The packages that are published, and their tarballs.

import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { npm } from "./packages.mjs";
import { requireSuccess } from "./steps.mjs";

/** The folder and the package.json of every package. */
export function listPublished(root) {
  const folders = ["kernels", ...readdirSync(join(root, "packages")).map((name) => `packages/${name}`)];
  return folders.map((folder) => ({
    folder,
    manifest: JSON.parse(readFileSync(join(root, folder, "package.json"), "utf8")),
  }));
}

/** Packs every package, which must be built, into `folder`, which is emptied first. Returns names and tarballs. */
export function packPublished(root, folder) {
  const published = listPublished(root);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const workspaces = published.flatMap((one) => ["--workspace", one.folder]);
  const packed = npm(root, ["pack", "--ignore-scripts", "--pack-destination", folder, ...workspaces]);
  requireSuccess(packed, "The packages could not be packed.", ["npm run build"]);
  return published.map(({ manifest: { name, version } }) => ({
    name,
    tarball: join(folder, `${name.replace("@", "").replace("/", "-")}-${version}.tgz`),
  }));
}
