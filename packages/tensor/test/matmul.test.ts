import {
  CpuDevice,
  type Device,
  MetaDevice,
  nf4Table,
  Random,
  roundToFloat16,
  type Tensor,
  TestRandom,
  type WebGpuDevice,
} from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { assertClose, gpuAvailable, openTestGpu, propertyRuns } from "./support.ts";

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

/** Settings that reach every matmul kernel; the kernels for GPUs run on any adapter. */
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

it.runIf(gpuAvailable).each([
  ["the large ones on a GPU", Number.POSITIVE_INFINITY],
  ["small ones where workgroup memory is as little as WebGPU guarantees", 2 ** 14],
])("a matmul with enough blocks for large ones uses %s, and is right", async (_, maxWorkgroupBytes) => {
  const gpu = await openTestGpu({ adapterClass: "discrete", maxWorkgroupBytes });
  const P = 130;
  // Several steps of k, the last of which is short.
  const shapes = {
    matmul: [
      [P, 68, 76],
      [P, 76, 72],
    ],
    matmulNT: [
      [P, 68, 76],
      [P, 72, 76],
    ],
    matmulTN: [
      [P, 75, 68],
      [P, 75, 72],
    ],
  } as const;
  for (const [name, [a, b]] of Object.entries(shapes)) {
    const call = (device: Device): Tensor =>
      device.scope(() =>
        device.ops[name as keyof typeof shapes](
          device.tensor(normals(a, 0), a),
          device.tensor(normals(b, 1), b),
        ),
      );
    using got = call(gpu);
    using want = call(reference);
    assertClose(name, await got.read(), await want.read(), { rel: 1e-5 }, null);
  }
  gpu.dispose();
});

/** Products of f32 activations with weights in f16: exact but where an adapter has subgroup matrices. */
it.runIf(gpuAvailable)("linear takes f32 beside f16 weights", async () => {
  const gpu = await openTestGpu({ precision: "f16" });
  const rel = gpu.profile.subgroupMatrices ? 2 ** -10 : 1e-5;
  for (const [M, K, N] of [
    [3, 64, 36],
    [40, 72, 68],
    [260, 100, 140],
    [33, 47, 65],
  ]) {
    const call = (device: Device): Tensor =>
      device.scope(() => {
        const x = device.tensor(
          normals([M, K], 0).map((v, i) => v * 10 ** (Math.floor(i / K) % 9)),
          [M, K],
        );
        const w = device.tensor(Float32Array.from(normals([N, K], 1), roundToFloat16), [N, K], {
          dtype: "f16",
        });
        return device.ops.linear(x, w, device.tensor(normals([N], 2), [N]));
      });
    using got = call(gpu);
    using want = call(reference);
    const [g, w] = [await got.read(), await want.read()];
    for (let m = 0; m < M; m++) {
      const row = (values: typeof g) => values.subarray(m * N, (m + 1) * N) as Float32Array;
      assertClose(`row ${m} of ${[M, K, N]}`, row(g), row(w), { rel }, null);
    }
  }
  gpu.dispose();
});

it.runIf(gpuAvailable)(
  "f16-rows scales rows by powers of two, without overflow and with 11 bits of each value",
  async () => {
    const gpu = (await openTestGpu()) as WebGpuDevice;
    const [M, K] = [9, 300];
    // From 1e-20 to 1e20, and a row of zeros.
    const values = normals([M, K], 0).map((v, i) => (i < K ? 0 : v * 10 ** (5 * (Math.floor(i / K) - 5))));
    using a = gpu.tensor(values, [M, K]);
    using rows = gpu.empty([M, K], { dtype: "f16" });
    using scales = gpu.empty([M]);
    gpu.dispatch("f16-rows/main", {
      bind: { a, rows, scales },
      params: { m: M, k: K, aAt: 0, aRow: K },
      grid: M,
    });
    const [h, s] = [await rows.read(), await scales.read()];
    for (let m = 0; m < M; m++) {
      const row = values.subarray(m * K, (m + 1) * K);
      const largest = row.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      expect(Number.isInteger(Math.log2(s[m]))).toBe(true);
      for (let i = 0; i < K; i++) {
        const error = Math.abs(h[m * K + i] * s[m] - row[i]);
        expect(error).toBeLessThanOrEqual(2 ** -11 * Math.abs(row[i]) + 2 ** -39 * largest);
      }
    }
    gpu.dispose();
  },
);

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

describe.runIf(gpuAvailable)("a product in f16", () => {
  it.each([
    ["a software driver's kernels", {}],
    ["a GPU's kernels", { adapterClass: "discrete" }],
  ] as const)("is summed in f32 over windows of k, and rounded once, on %s", async (_, options) => {
    // The first window cancels the last; what those between add is less than half of what f16 could tell from the first's sum.
    const [M, K, N, window] = [1, 4096, 16, 256];
    using gpu = await openTestGpu({ ...options, maxBindingBytes: 2 * N * window });
    const rows = Array.from({ length: K }, (_, i) => (i < window ? 64 : i < K - window ? 0.0185546875 : -64));
    for (const name of ["matmul", "matmulTN"] as const) {
      using y = gpu.scope(() => {
        const shape = name === "matmul" ? [M, K] : [K, M];
        const ones = gpu.tensor(new Float32Array(M * K).fill(1), shape, { dtype: "f16" });
        const b = gpu.tensor(
          rows.flatMap((row) => new Array<number>(N).fill(row)),
          [K, N],
          { dtype: "f16" },
        );
        return gpu.ops[name](ones, b);
      });
      const want = roundToFloat16(0.0185546875 * (K - 2 * window));
      expect([y.dtype, new Set(await y.read())]).toEqual(["f16", new Set([want])]);
    }
  });
});

describe("matmul on WebAssembly", () => {
  let device: Device;
  beforeAll(async () => {
    device = await openNodeWasm({ poison: true });
  });
  afterAll(() => device?.dispose());

  it.each([
    ["windows of every extent", 1, 520, 4099, 523],
    ["batches, some at a time", 60, 7, 2048, 10],
    ["batches, in windows of k", 60, 7, 2049, 10],
    ["batches of one row", 3, 1, 40, 20],
    ["one row, times longer ones than a task has elements", 1, 1, 33_000, 5],
  ])("is exact on integers in %s", async (_, P, M, K, N) => {
    const { cast, linear, mul, reshape, sub, sum } = device.ops;
    const pick = new TestRandom(1);
    const column = (x: Tensor) => reshape(x, { shape: [P, x.size / P, 1] });
    const row = (x: Tensor) => reshape(x, { shape: [P, 1, x.size / P] });
    const matrix = (x: Tensor) => reshape(x, { shape: x.shape.slice(1) });
    for (const dtype of ["f32", "f16"] as const) {
      const differences = device.scope(() => {
        // (u vᵀ) · (x wᵀ) = u (v · x) wᵀ: what is read or written at a wrong place of a window shows.
        const [u, v, x, w] = [M, K, K, N].map((n) => device.tensor(pick.ints(P * n, -2, 2), [P, n]));
        const want = mul(mul(column(u), row(w)), column(sum(mul(v, x), { axis: 1 })));
        const [a, aT] = [mul(column(u), row(v)), mul(column(v), row(u))];
        const [b, bT] = [mul(column(x), row(w)), mul(column(w), row(x))].map((y) => cast(y, { to: dtype }));
        const { matmul, matmulNT, matmulTN } = device.ops;
        const plain = [matmul(a, b), matmulNT(a, bT), matmulTN(aT, b)].map((y) => sub(y, want));
        if (P > 1) return plain;
        return [...plain, sub(linear(matrix(a), matrix(bT), matrix(w)), device.ops.add(matrix(want), w))];
      });
      for (const [i, difference] of differences.entries()) {
        const name = `${["matmul", "matmulNT", "matmulTN", "linear"][i]} of b in ${dtype}`;
        expect(new Set((await difference.read()).map(Math.abs)), name).toEqual(new Set([0]));
        difference.dispose();
      }
    }
  });

  it("multiplies by a weight in NF4 as by the values that it stands for, in windows of every extent", async () => {
    const [M, O, I] = [7, 2112, 2176];
    const differences = device.scope(() => {
      const { linear, matmul, nf4Dequantize, nf4Linear, nf4LinearBackwardX, nf4Quantize, sub } = device.ops;
      const table = device.tensor(nf4Table(), [273]);
      const [codes, absmax] = nf4Quantize(device.tensor(normals([O, I], 0), [O, I]), table);
      const w = nf4Dequantize(codes, table, absmax, null, { shape: [O, I] });
      const [x, dy] = [device.tensor(normals([M, I], 1), [M, I]), device.tensor(normals([M, O], 2), [M, O])];
      return [
        sub(nf4Linear(x, codes, table, absmax, null, null, { out: O }), linear(x, w)),
        sub(nf4LinearBackwardX(dy, codes, table, absmax, null, { in: I }), matmul(dy, w)),
      ];
    });
    for (const difference of differences) {
      expect(new Set((await difference.read()).map(Math.abs))).toEqual(new Set([0]));
      difference.dispose();
    }
  });

  it("packs at most 4 MiB of each operand, whatever their extents", () => {
    const extents = fc.record({
      P: fc.integer({ min: 1, max: 20 }),
      M: fc.integer({ min: 1, max: 5000 }),
      K: fc.integer({ min: 1, max: 9000 }),
      N: fc.integer({ min: 1, max: 5000 }),
      panelRows: fc.constantFrom(5, 6),
    });
    const property = ({ P, M, K, N, panelRows }: Record<"P" | "M" | "K" | "N" | "panelRows", number>) => {
      const plan = new MetaDevice({ wasm: { panelRows } });
      using a = plan.empty([P, M, K]);
      using b = plan.empty([P, K, N]);
      const before = plan.memory.liveBytes;
      plan.memory.resetPeak();
      using y = plan.ops.matmul(a, b);
      expect(plan.memory.peak().peakBytes - before - 4 * y.size).toBeLessThanOrEqual(2 * 2 ** 22);
    };
    fc.assert(fc.property(extents, property), propertyRuns(300));
  });
});
