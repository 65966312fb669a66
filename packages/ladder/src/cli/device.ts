import { mkdirSync } from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import type { Device } from "@sidenet/tensor";
import { DEVICE_NAMES, type DeviceName, openDevice, releaseDawn } from "@sidenet/tensor/node";
import { InvalidArgumentError, Option } from "commander";
import type { Report } from "./terminal.ts";

/** `--json`, which every command has. */
export const jsonOption = (): Option =>
  new Option("--json", "print one JSON object as the last line of output");

/** Devices that hold values. */
const COMPUTING = DEVICE_NAMES.filter((name) => name !== "meta");

/** `--device`, with the devices that make sense for the command. */
export function deviceOption(names: readonly DeviceName[] = COMPUTING): Option {
  const text = "where to compute; auto: a hardware GPU if there is one, else WebAssembly";
  const parse = (name: string): DeviceName => {
    const known = names.find((one) => one === name);
    if (known !== undefined) return known;
    const hint = GPU_WORDS.test(name) ? " webgpu is the GPU, of any vendor." : "";
    throw new InvalidArgumentError(`Allowed choices are ${names.join(", ")}.${hint}`);
  };
  return new Option("--device <name>", text).choices(names).argParser(parse).default("auto");
}

/** What a GPU is called elsewhere. */
const GPU_WORDS = /^(gpu|cuda|rocm|hip|mps|metal|vulkan|directml|dx12|d3d12|xpu)(:\d+)?$/i;

/** Peak memory of a device by category, as in every command's JSON. */
export function peakJson({ memory }: Device) {
  const { peakBytes, byCategory } = memory.peak(0);
  return { peak_bytes: peakBytes, peak_bytes_by_category: byCategory };
}

/** Gives XDG_RUNTIME_DIR a private folder where the system has set none: Mesa prints a warning without it. */
export function ensureRuntimeFolder(): void {
  if (process.env.XDG_RUNTIME_DIR || process.platform !== "linux") return;
  const folder = join(tmpdir(), `sidenet-runtime-${userInfo().uid}`);
  mkdirSync(folder, { recursive: true, mode: 0o700 }); // private, as the XDG specification asks
  process.env.XDG_RUNTIME_DIR = folder;
}

/**
 * Runs `body` with a device and lets that go, so that the process can end. Names the device in `report`, if given. With
 * weights in f16 (`dtype`) products may be as precise as those are (docs/decisions.md, "Precision is the device's").
 * Throws what `openDevice` and `body` throw.
 */
export async function withDevice<T>(
  on: DeviceName | { readonly device: DeviceName; readonly dtype?: "f32" | "f16" | "auto" },
  report: Report | null,
  body: (device: Device, reason: string) => Promise<T>,
): Promise<T> {
  ensureRuntimeFolder();
  const { device: name, dtype = "f32" } = typeof on === "string" ? { device: on } : on;
  const { device, reason } = await openDevice(name, { precision: dtype === "f32" ? "f32" : "f16" });
  try {
    report?.note(`device: ${device.kind}, ${device.label} (${reason})`);
    return await body(device, reason);
  } finally {
    device.dispose();
    releaseDawn();
  }
}
