import { readFileSync } from "node:fs";
import { CpuDevice, DEFAULT_TILES, type Device, Pick, type WebGpuDevice } from "@sidenet/tensor";
import fc from "fast-check";
import { afterAll, beforeAll, expect, it } from "vitest";
import { makeKernelContext } from "../src/kernel-context.ts";
import { runMatmul } from "../src/ops/matmul-plan.ts";
import { gpuAvailable, openTestGpu, propertyRuns } from "./support.ts";

/** What stands for the units' types and functions: of a matrix of sums each of 32 lanes has eight, beside each other. */
const UNITS = `
struct Left { at: u32, step: u32 }
struct Right { at: u32, step: u32, byColumns: bool }
struct Sum { v: array<f32, 8> }
var<private> laneId: u32;
const HALVED = 4096.0; // rows of a are multiplied up to where halves end

fn rightAt(b: Right, k: u32, n: u32) -> f32 {
  let major = select(k, n, b.byColumns);
  let minor = select(n, k, b.byColumns);
  return f32(blockB[b.at + major * b.step + minor / 4][minor % 4]);
}

fn multiplyAccumulate(a: Left, b: Right, c: Sum) -> Sum {
  var sum = c;
  for (var k = 0u; k < 16; k++) {
    let left = f32(blockA[a.at + laneId / 2 * a.step + k / 4][k % 4]);
    for (var i = 0u; i < 8; i++) { sum.v[i] += left * rightAt(b, k, laneId % 2 * 8 + i); }
  }
  return sum;
}

fn storeSums(at: u32, c: Sum, step: u32) {
  let to = at + laneId / 2 * step + laneId % 2 * 2;
  results[to] = vec4<f16>(vec4(c.v[0], c.v[1], c.v[2], c.v[3]) / HALVED);
  results[to + 1] = vec4<f16>(vec4(c.v[4], c.v[5], c.v[6], c.v[7]) / HALVED);
}
`;

/** kernels/matmul-matrix.wgsl for adapters without such units: results in halves, since memory of workgroups is short there. */
function withoutUnits(): string {
  const text = readFileSync(new URL("../../../kernels/matmul-matrix.wgsl", import.meta.url), "utf8");
  return text
    .replace(/^diagnostic.*\n|^enable (?!f16).*\n/gm, "")
    .replace(/^alias (Left|Right|Sum) = .*\n/gm, "")
    .replace("results: array<vec4<f32>,", "results: array<vec4<f16>,")
    .replace("var v = results[(subgroup * 16 + i / 8) * STEP_Y + i % 8];", (line) =>
      line.replace(/results.*\]/, (value) => `vec4<f32>(${value}) * HALVED`),
    )
    .replace("subgroupMatrixLoad<Left, row_major>(&blockA, ", "Left(")
    .replace(
      /subgroupMatrixLoad<Right, (row|col)_major>\(&blockB, (.*)\);/g,
      (_, major, rest) => `Right(${rest}, ${major === "col"});`,
    )
    .replaceAll("subgroupMatrixMultiplyAccumulate(", "multiplyAccumulate(")
    .replaceAll("subgroupMatrixStore<row_major>(&results, ", "storeSums(")
    .replace(
      /, @builtin\(subgroup_id\)[\s\S]*?\{/,
      ") {\n  let subgroup = t / 32;\n  let lane = t % 32;\n  laneId = lane;",
    )
    .replace("@compute", `${UNITS}\n@compute`);
}

const PLAIN = "matmul-matrix-plain";
let gpu: WebGpuDevice;
const reference = new CpuDevice({ precision: "f64" });

beforeAll(async () => {
  if (!gpuAvailable) return;
  gpu = (await openTestGpu({ adapterClass: "discrete" })) as WebGpuDevice;
  gpu.profile = { ...gpu.profile, matrixUnits: true };
  gpu.addKernel(PLAIN, withoutUnits());
});
afterAll(() => gpu?.dispose());

/** Runs a product as on an adapter with matrix units; how many parts its sum had. */
function runOnUnits(
  ...[form, operands, extents]: Parameters<typeof runMatmul> extends [unknown, ...infer Rest] ? Rest : never
): number {
  let parts = 0;
  const context = makeKernelContext(gpu, "a product", (kernel, call) => {
    const isMatrix = kernel === "matmul-matrix/main";
    if (isMatrix) parts = Math.max(parts, call.params.parts as number);
    gpu.dispatch(isMatrix ? `${PLAIN}/main` : kernel, call);
  });
  try {
    runMatmul(context.kernel, form, operands, extents);
  } finally {
    context.release();
  }
  return parts;
}

/** Whole numbers of which sums of a thousand are exact in halves. */
const few = (pick: Pick, size: number) =>
  Float32Array.from({ length: size }, () => pick.oneOf([0, 0, 1, -1]));

it.runIf(gpuAvailable)(
  "the kernel for matrix units, its units played by plain code, is exact on whole numbers, in parts as in one sum",
  async () => {
    let split = 0;
    const property = async (seed: number) => {
      const pick = new Pick(seed);
      const [M, K, N] = [
        pick.int(16, 200),
        4 * (pick.chance(0.5) ? pick.int(4, 30) : pick.int(128, 250)),
        4 * pick.int(1, 70),
      ];
      const form = pick.oneOf(["nt", "nn"] as const);
      const [accumulate, hasBias, splitBlocks] = [
        pick.chance(0.5),
        pick.chance(0.5),
        pick.oneOf([0, 64, 128]),
      ];
      gpu.retile({ ...DEFAULT_TILES, splitBlocks });
      const values = { a: few(pick, M * K), b: few(pick, K * N), y: few(pick, M * N), bias: few(pick, N) };
      const make = (device: Device) => ({
        a: device.tensor(values.a, [M, K]),
        b: device.tensor(values.b, form === "nt" ? [N, K] : [K, N], { dtype: "f16" }),
        y: device.tensor(values.y, [M, N]),
        bias: hasBias ? device.tensor(values.bias, [N]) : null,
      });
      const { y, ...operands } = make(gpu);
      const parts = runOnUnits(form, { ...operands, y }, { P: 1, M, K, N, accumulate });
      if (parts > 1) split++;
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
      expect(parts, "it went to the units").toBeGreaterThan(0);
      expect(Array.from(got), `${form} ${[M, K, N]} in ${parts} parts`).toEqual(Array.from(expected));
      expect(gpu.memory.liveCount).toBe(0);
    };
    await fc.assert(fc.asyncProperty(fc.integer({ min: 0, max: 2 ** 31 }), property), propertyRuns(20));
    expect(split).toBeGreaterThan(3);
  },
);
