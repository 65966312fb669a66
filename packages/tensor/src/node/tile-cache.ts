/** The file in which `sidenet bench --tune` leaves a tile table, and which devices read when they open. */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { kernels } from "@sidenet/kernels";
import { areTiles, type Tiles } from "../tiles.ts";
import type { WebGpuDevice } from "../webgpu/device.ts";

const FORMAT = 1;

/** $SIDENET_CACHE, else $XDG_CACHE_HOME/sidenet, else ~/.cache/sidenet; in it tiles.json. */
export function tileCachePath(): string {
  const { SIDENET_CACHE, XDG_CACHE_HOME } = process.env;
  return join(SIDENET_CACHE || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "sidenet"), "tiles.json");
}

/** A number of the texts of the kernels that the table chooses between: another one, and times of old mean nothing. */
function kernelsHash(): string {
  let hash = 0x811c9dc5; // FNV-1a
  for (const [name, text] of Object.entries(kernels)) {
    if (!name.startsWith("matmul-")) continue;
    for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  }
  return (hash >>> 0).toString(16);
}

/** What a table was measured for: the adapter with its driver, and our kernels. */
function identityOf(device: WebGpuDevice): Readonly<Record<string, string>> {
  const {
    vendor = "",
    architecture = "",
    device: name = "",
    description = "",
  } = device.gpu.adapterInfo ?? {};
  return { vendor, architecture, device: name, description, kernels: kernelsHash() };
}

/** Writes the table for this adapter in the place of what was there. Throws what the file system throws. */
export function writeTileCache(device: WebGpuDevice, tiles: Tiles): string {
  const path = tileCachePath();
  const entry = { format: FORMAT, date: new Date().toISOString(), measuredFor: identityOf(device), tiles };
  mkdirSync(dirname(path), { recursive: true });
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

/** Why a file's text is no table for this device, or the table. */
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

/** The table for this device, or null: without a file silently, with one that does not fit after a warning, once. */
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
