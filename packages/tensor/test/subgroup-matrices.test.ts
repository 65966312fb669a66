import { CpuDevice, DEFAULT_TILES, type Device, TestRandom } from "@sidenet/tensor";
import fc from "fast-check";
import { expect, it } from "vitest";
import { withKernelContext } from "../src/kernel-context.ts";
import { runMatmul, usesSubgroupMatrices } from "../src/ops/matmul-plan.ts";
import { propertyRuns } from "./support.ts";
import { WgslDevice } from "./wgsl/device.ts";

const gpu = new WgslDevice({ subgroupMatrices: true });
const reference = new CpuDevice({ precision: "f64" });

/** Runs a matmul as on an adapter with subgroup matrices; returns the largest number of splits of a dispatch. */
function runOnSubgroupMatrices(
  ...[form, operands, extents]: Parameters<typeof runMatmul> extends [unknown, ...infer Rest] ? Rest : never
): number {
  gpu.calls.length = 0;
  withKernelContext(gpu, "a matmul", gpu.dispatch.bind(gpu), (k) => runMatmul(k, form, operands, extents));
  const matmuls = gpu.calls.filter(({ kernel }) => kernel === "matmul-matrix/main");
  return Math.max(0, ...matmuls.map(({ call }) => call.params.splits as number));
}

/** Integers so small that a sum of a thousand products is exact in f16. */
const few = (pick: TestRandom, size: number) =>
  Float32Array.from({ length: size }, () => pick.oneOf([0, 0, 1, -1]));

it.each([
  ["nt", 24, 12, true],
  ["nt", 20, 16, false],
  ["nn", 24, 16, true],
  ["nn", 24, 12, false],
] as const)(
  "%s of K %i and N %i: reads eight values at a time, so it is %s that it runs",
  (form, K, N, runs) => {
    const profile = { ...gpu.profile, subgroupMatrices: true };
    expect(usesSubgroupMatrices(profile, form, { M: 64, K, N }, "f16")).toBe(runs);
  },
);

it("the kernel for subgroup matrices, run as JavaScript, is exact on integers, with split-K and without", async () => {
  let splitCases = 0;
  const property = async (seed: number) => {
    const pick = new TestRandom(seed);
    const form = pick.oneOf(["nt", "nn"] as const);
    const [M, K, N] = [
      pick.int(16, 200),
      8 * (pick.chance(0.5) ? pick.int(2, 15) : pick.int(64, 125)),
      form === "nn" ? 8 * pick.int(1, 35) : 4 * pick.int(1, 70),
    ];
    const [accumulate, hasBias, splitKBlocks] = [
      pick.chance(0.5),
      pick.chance(0.5),
      pick.oneOf([0, 64, 128]),
    ];
    gpu.profile = { ...gpu.profile, tiles: { ...DEFAULT_TILES, splitKBlocks } };
    const values = { a: few(pick, M * K), b: few(pick, K * N), y: few(pick, M * N), bias: few(pick, N) };
    const make = (device: Device) => ({
      a: device.tensor(values.a, [M, K]),
      b: device.tensor(values.b, form === "nt" ? [N, K] : [K, N], { dtype: "f16" }),
      y: device.tensor(values.y, [M, N]),
      bias: hasBias ? device.tensor(values.bias, [N]) : null,
    });
    const { y, ...operands } = make(gpu);
    const splits = runOnSubgroupMatrices(form, { ...operands, y }, { P: 1, M, K, N, accumulate });
    if (splits > 1) splitCases++;
    const got = await y.read();
    for (const tensor of [y, operands.a, operands.b, operands.bias]) tensor?.dispose();
    const want = reference.scope(() => {
      const { a, b, y: held, bias } = make(reference);
      const product = form === "nt" ? reference.ops.linear(a, b, bias) : reference.ops.matmul(a, b);
      const sum = bias && form === "nn" ? reference.ops.add(product, bias) : product;
      return accumulate ? reference.ops.add(sum, held) : sum;
    });
    const expected = await want.read();
    want.dispose();
    expect(splits, "subgroup matrices were used").toBeGreaterThan(0);
    expect(Array.from(got), `${form} ${[M, K, N]} with ${splits} splits`).toEqual(Array.from(expected));
    expect(gpu.memory.liveCount).toBe(0);
  };
  await fc.assert(fc.asyncProperty(fc.integer({ min: 0, max: 2 ** 31 }), property), propertyRuns(20));
  expect(splitCases).toBeGreaterThan(3);
});
