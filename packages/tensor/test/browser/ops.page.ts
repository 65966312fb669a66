/** Ops in a page: random cases on a device of the browser against the reference. */
import {
  checkRow,
  type Device,
  type OpName,
  openBrowserDevice,
  openBrowserWasm,
  openWebGpu,
  opNames,
  type WebGpuOptions,
} from "@sidenet/tensor";

/** What differs from the reference: the first difference of each op in `cases` random cases. */
async function differences(
  device: Device,
  { names = opNames, cases, elem = "f32" }: Cases,
): Promise<string[]> {
  const found: string[] = [];
  for (const name of names) {
    const problem = await checkRow(device, name, cases, elem);
    if (problem !== null) found.push(`${name}, ${problem}`);
  }
  return found;
}

/** Which random cases, of all ops if there are no `names`. */
export interface Cases {
  readonly names?: readonly OpName[];
  readonly cases: number;
  readonly elem?: "f32" | "f16";
}

/** WebAssembly: what it says of itself, and every op. */
export async function wasm() {
  const device = await openBrowserWasm({ poison: true });
  try {
    return {
      isolated: (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated === true,
      cores: (globalThis as { navigator?: { hardwareConcurrency: number } }).navigator!.hardwareConcurrency,
      threads: device.threads,
      differences: await differences(device, { cases: 10 }),
    };
  } finally {
    device.dispose();
  }
}

/** WebGPU: the adapter, or why there is none, and ops on it. */
export async function webGpu({ options, ...cases }: Cases & { options?: WebGpuOptions }) {
  const { gpu } = (globalThis as unknown as { navigator: { gpu?: GPU } }).navigator;
  const device = await openWebGpu(gpu, { poison: true, ...options });
  try {
    return { label: device.label, differences: await differences(device, cases) };
  } finally {
    device.dispose();
  }
}

/** What "wasm" opens, and why. */
export async function openedAsWasm() {
  const { device, reason } = await openBrowserDevice("wasm");
  try {
    return { kind: device.kind, label: device.label, reason };
  } finally {
    device.dispose();
  }
}
