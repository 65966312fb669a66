/** The tile cache: `sidenet bench --tune` writes a tile table to it, and WebGPU devices read it when they open. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { kernels } from "@sidenet/kernels";
import type { Tiles } from "../profile.ts";
import { areTiles } from "../tiles.ts";
import type { WebGpuDevice } from "../webgpu/device.ts";

/** Version of the file's layout; a file of another version is ignored with a warning. */
const FORMAT = 2;

/** `tiles.json` in $SIDENET_CACHE, else in $XDG_CACHE_HOME/sidenet, else in ~/.cache/sidenet. */
export function tileCachePath(): string {
  const { SIDENET_CACHE, XDG_CACHE_HOME } = process.env;
  return join(SIDENET_CACHE || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "sidenet"), "tiles.json");
}

/** Hash of the kernels that the table chooses between: timings of other kernel texts do not apply. */
function kernelsHash(): string {
  const hash = createHash("sha256");
  for (const [name, text] of Object.entries(kernels)) {
    if (/^(matmul|attention)-/.test(name)) hash.update(text);
  }
  return hash.digest("hex");
}

/** What a table was measured on: the adapter, its driver and the kernels. */
function identityOf(device: WebGpuDevice): Readonly<Record<string, string>> {
  const {
    vendor = "",
    architecture = "",
    device: name = "",
    description = "",
  } = device.gpu.adapterInfo ?? {};
  return { vendor, architecture, device: name, description, kernels: kernelsHash() };
}

/** The text of the file with the table for this adapter. */
export function tileCacheText(device: WebGpuDevice, tiles: Tiles): string {
  const entry = { format: FORMAT, date: new Date().toISOString(), measuredFor: identityOf(device), tiles };
  return `${JSON.stringify(entry, null, 1)}\n`;
}

/** The table in a file's text, or the reason why this device cannot use it. */
function judge(text: string, device: WebGpuDevice): Tiles | string {
  let entry: { format?: unknown; measuredFor?: unknown; tiles?: unknown } | null;
  try {
    entry = JSON.parse(text);
  } catch {
    return "it is not JSON";
  }
  if (entry?.format !== FORMAT || typeof entry.measuredFor !== "object" || !areTiles(entry.tiles))
    return "it is not a tile table of this version";
  const [then, now] = [{ ...entry.measuredFor } as Record<string, unknown>, identityOf(device)];
  const other = Object.keys(now).find((key) => then[key] !== now[key]);
  if (other === undefined) return entry.tiles;
  if (other === "kernels") return "it was measured with other kernels";
  return `it was measured on another adapter or driver (${other} ${JSON.stringify(then[other])})`;
}

let warned = false;

/** The table for this device, or null if there is no file or, after one warning per process, if it does not fit the device. */
export function readTileCache(device: WebGpuDevice): Tiles | null {
  const path = tileCachePath();
  let found: Tiles | string;
  try {
    found = judge(readFileSync(path, "utf8"), device);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    found = String((error as Error).message);
  }
  if (typeof found !== "string") return found;
  if (!warned) {
    const cure = "Run `sidenet bench --tune` again, or delete the file";
    process.emitWarning(`${path} is ignored: ${found}. ${cure}.`, {
      type: "SidenetWarning",
      code: "T-TILES",
    });
  }
  warned = true;
  return null;
}
