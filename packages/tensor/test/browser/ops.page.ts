/** Ops in a page: random cases on a device of the browser against the reference. */
import {
  CpuDevice,
  compareOutcomes,
  type Device,
  drawCase,
  type OpName,
  openBrowserDevice,
  openBrowserWasm,
  openWebGpu,
  opNames,
  rowOf,
  runCase,
  TestRandom,
} from "@sidenet/tensor";

/** What differs from the reference, by op; each op takes `cases` random cases. */
async function differences(device: Device, names: readonly OpName[], cases: number): Promise<string[]> {
  const reference = new CpuDevice({ precision: "f64" });
  const found: string[] = [];
  for (const name of names) {
    for (let seed = 1; seed <= cases; seed++) {
      const drawn = drawCase(rowOf(name), new TestRandom(seed));
      const expected = await runCase(reference, name, drawn);
      const got = await runCase(device, name, drawn);
      const problem = compareOutcomes(name, drawn, got, expected);
      if (problem !== null) found.push(`${problem} (seed ${seed})`);
    }
  }
  return found;
}

/** WebAssembly: what it says of itself, and every op. */
export async function wasm() {
  const device = await openBrowserWasm({ poison: true });
  try {
    return {
      isolated: (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated === true,
      cores: (globalThis as { navigator?: { hardwareConcurrency: number } }).navigator!.hardwareConcurrency,
      threads: device.threads,
      differences: await differences(device, opNames, 10),
    };
  } finally {
    device.dispose();
  }
}

/** WebGPU: the adapter, or why there is none, and a few ops of each kind of kernel. */
export async function webGpu() {
  const { gpu } = (globalThis as unknown as { navigator: { gpu?: GPU } }).navigator;
  const device = await openWebGpu(gpu, { poison: true });
  try {
    const names: OpName[] = [
      "add",
      "matmul",
      "linear",
      "rmsNorm",
      "softmax",
      "attention",
      "crossEntropy",
      "sum",
    ];
    return { label: device.label, differences: await differences(device, names, 2) };
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
