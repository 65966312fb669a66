/** The tile cache: `sidenet bench --tune` writes a tile table to it, and WebGPU devices read it when they open. */
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
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
  let hash = 0x811c9dc5; // FNV-1a
  for (const [name, text] of Object.entries(kernels)) {
    if (!/^(matmul|attention)-/.test(name)) continue;
    for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  }
  return (hash >>> 0).toString(16);
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

/** Writes the table for this adapter, replacing the file, and returns its path. Throws what the file system throws. */
export function writeTileCache(device: WebGpuDevice, tiles: Tiles): string {
  const path = tileCachePath();
  const entry = { format: FORMAT, date: new Date().toISOString(), measuredFor: identityOf(device), tiles };
  mkdirSync(dirname(path), { recursive: true });
  discardLeftovers(path);
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    writeFileSync(temporary, `${JSON.stringify(entry, null, 1)}\n`);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
  return path;
}

/** Removes what killed processes have left beside the file. */
function discardLeftovers(path: string): void {
  for (const name of readdirSync(dirname(path))) {
    const pid = /^tiles\.json\.(\d+)\.tmp$/.exec(name)?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) rmSync(join(dirname(path), name), { force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // another user's
  }
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
