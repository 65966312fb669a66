import { CpuDevice, type Device, Random, type Tensor } from "@sidenet/tensor";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { assertClose, gpuAvailable, openTestGpu } from "./support.ts";

type Options = Parameters<typeof openTestGpu>[0];

/** [M, K, N]: one row, few rows, on both sides of a tile, in fours and not. */
const small = [
  [1, 64, 100],
  [3, 129, 67],
  [8, 64, 36],
  [16, 32, 64],
  [33, 68, 132],
  [65, 100, 72],
  [71, 47, 129],
] as const;

/** Each operand in turn past 128 KiB, with rows of any length: windows start at multiples of 64 of them. */
const large = [
  [200, 129, 300],
  [64, 520, 128],
  [300, 68, 200],
  [130, 300, 260],
] as const;

/** Each way to run a product; the one for GPUs runs on whatever adapter there is. */
const settings: [string, Options, readonly (readonly [number, number, number])[]][] = [
  ["as the adapter is", {}, small],
  ["as on a GPU", { adapterClass: "discrete" }, small],
  ["in windows of 128 KiB", { maxBindingBytes: 2 ** 17 }, large],
  ["in windows of 128 KiB, as on a GPU", { adapterClass: "discrete", maxBindingBytes: 2 ** 17 }, large],
];

const reference = new CpuDevice({ precision: "f64" });

const normals = (shape: readonly number[], stream: number): Float32Array =>
  new Random(3, stream).normals(shape.reduce((a, b) => a * b, 1));

describe.runIf(gpuAvailable).each(settings)("matmul, %s", (_, options, sizes) => {
  let gpu: Device;
  beforeAll(async () => {
    gpu = await openTestGpu(options);
  });
  afterAll(() => gpu?.dispose());

  it.each(["matmul", "matmulNT", "matmulTN", "linear"] as const)("%s", async (name) => {
    for (const [M, K, N] of sizes) {
      const a = name === "matmulTN" ? [K, M] : [M, K];
      const b = name === "matmul" || name === "matmulTN" ? [K, N] : [N, K];
      const call = (device: Device): Tensor =>
        device.scope(() => {
          const x = device.tensor(normals(a, 0), a);
          const w = device.tensor(normals(b, 1), b);
          if (name === "linear") return device.ops.linear(x, w, device.tensor(normals([N], 2), [N]));
          return device.ops[name](x, w);
        });
      using got = call(gpu);
      using want = call(reference);
      assertClose(`${name} ${[M, K, N]}`, await got.read(), await want.read(), { rel: 1e-5 }, null);
    }
    expect(gpu.memory.liveCount).toBe(0);
  });
});

it.runIf(gpuAvailable)("matmul folds more than 65,535 workgroups over two axes", async () => {
  const gpu = await openTestGpu();
  for (const K of [4, 3]) {
    const call = (device: Device): Tensor =>
      device.scope(() => {
        const a = device.tensor(normals([70_001, 1, K], 0), [70_001, 1, K]);
        const b = device.tensor(normals([70_001, K, 4], 1), [70_001, K, 4]);
        return device.ops.matmul(a, b);
      });
    using got = call(gpu);
    using want = call(reference);
    assertClose("y", await got.read(), await want.read(), { rel: 1e-5 }, null);
  }
  gpu.dispose();
});
