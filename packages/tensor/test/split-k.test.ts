import {
  CpuDevice,
  compareOutcomes,
  DEFAULT_TILES,
  type DeviceProfile,
  drawCase,
  MetaDevice,
  type OpName,
  rowOf,
  runCase,
  SidenetError,
  TestRandom,
  TILE_CANDIDATES,
  type WebGpuDevice,
} from "@sidenet/tensor";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { AnyOpRow, KernelCall, KernelEntry } from "../src/op.ts";
import { gpuAvailable, openTestGpu, propertyRuns, timeBoxed } from "./support.ts";

type Extents = Readonly<Record<"P" | "M" | "K" | "N", number>>;
type Form = "matmul" | "matmulNT" | "matmulTN";

/** Shapes of the operands of a matmul, as the form stores them. */
function shapesOf(form: Form, { P, M, K, N }: Extents): [a: number[], b: number[]] {
  const batch = P > 1 ? [P] : [];
  return [
    [...batch, ...(form === "matmulTN" ? [K, M] : [M, K])],
    [...batch, ...(form === "matmulNT" ? [N, K] : [K, N])],
  ];
}

/** The dispatches of a matmul on such a device, and its peak workspace in bytes. */
function planOf(profile: Partial<DeviceProfile>, form: Form, extents: Extents) {
  const calls: { kernel: KernelEntry; call: KernelCall }[] = [];
  const meta = new MetaDevice(profile, (kernel, call) => calls.push({ kernel, call }));
  const [shapeA, shapeB] = shapesOf(form, extents);
  using a = meta.empty(shapeA);
  using b = meta.empty(shapeB);
  meta.memory.resetPeak();
  using y = meta.ops[form](a, b);
  const workspace = meta.memory.peak().peakBytes - meta.memory.liveBytes;
  expect(meta.memory.liveCount, `${y} and its operands alone are left`).toBe(3);
  return { calls, workspace };
}

const fours = (most: number) => fc.integer({ min: 1, max: most / 4 }).map((four) => 4 * four);
const extents = fc.record({
  P: fc.constantFrom(1, 1, 1, 2, 5),
  M: fours(2100),
  K: fc.oneof(fours(1000), fours(160_000)),
  N: fours(2100),
});
const forms = fc.constantFrom<Form>("matmul", "matmulNT", "matmulTN");

describe("the plan of a matmul", () => {
  it("splits are deep enough, cover k, and have no more blocks than wanted", () => {
    const wishes = fc.constantFrom(...TILE_CANDIDATES.splitKBlocks);
    let splitCases = 0;
    const property = (form: Form, sizes: Extents, splitKBlocks: number) => {
      const { P, M, K, N } = sizes;
      fc.pre(P === 1 || K * Math.max(M, N) < 2 ** 23);
      const plan = planOf({ tiles: { ...DEFAULT_TILES, splitKBlocks } }, form, sizes);
      expect(plan.workspace).toBeLessThanOrEqual(splitKBlocks * 2 ** 16);
      for (const [i, { kernel, call }] of plan.calls.entries()) {
        if (kernel !== "matmul-block/main" || call.params.splits === 1) continue;
        splitCases++;
        const { splits, splitDepth, batches, m, n, k } = call.params as Record<string, number>;
        const side = call.consts!.BLOCK;
        const blocks = batches * Math.ceil(m / side) * Math.ceil(n / side);
        expect(splitDepth).toBeGreaterThanOrEqual(128);
        expect(splitDepth % 32).toBe(0);
        expect(splits * splitDepth).toBeGreaterThanOrEqual(k);
        expect((splits - 1) * splitDepth).toBeLessThan(k);
        expect(call.grid).toBe(splits * blocks);
        expect(splits * blocks * (side / 128) ** 2).toBeLessThanOrEqual(splitKBlocks);
        expect(plan.calls[i + 1].kernel).toBe("matmul-split-k/main");
        expect(plan.calls[i + 1].call.params.splits).toBe(splits);
        expect(batches * m * n * splits * 4).toBeLessThanOrEqual(2 ** 27);
      }
      const [covered, whole] = [
        plan.calls.filter(({ kernel }) => kernel !== "matmul-split-k/main"),
        P * M * N * K,
      ];
      const done = covered.reduce((sum, { call: { params } }) => {
        const { batches = 1, m = M, n, k } = params as Record<string, number>;
        return sum + batches * m * n * k;
      }, 0);
      expect(done).toBe(whole);
    };
    fc.assert(fc.property(forms, extents, wishes, property), propertyRuns(2000));
    expect(splitCases).toBeGreaterThan(300);
  });

  it("the partial results of all splits fit one binding together, however small it is", () => {
    const maxBindingBytes = 2 ** 20;
    const extent = fours(4000);
    const property = (form: Form, M: number, K: number, N: number) => {
      for (const { kernel, call } of planOf({ maxBindingBytes }, form, { P: 1, M, K, N }).calls) {
        if (kernel !== "matmul-split-k/main") continue;
        const { vectors, splits } = call.params as Record<string, number>;
        expect(16 * vectors * splits).toBeLessThanOrEqual(maxBindingBytes);
      }
    };
    fc.assert(fc.property(forms, extent, extent, extent, property), propertyRuns(300));
  });

  it.each([
    // The gradient of a head's chunk, a layer of a small model, a side network's weight, more of it, enough blocks, a short sum.
    ["matmul", { P: 1, M: 64, K: 152_064, N: 3584 }, 64, 9],
    ["matmul", { P: 1, M: 128, K: 152_064, N: 3584 }, 128, 4],
    ["matmulNT", { P: 1, M: 256, K: 576, N: 576 }, 64, 4],
    ["matmulTN", { P: 1, M: 72, K: 2048, N: 576 }, 64, 16],
    ["matmulTN", { P: 1, M: 72, K: 4096, N: 576 }, 128, 22],
    ["matmulNT", { P: 1, M: 2048, K: 3584, N: 3584 }, 128, 1],
    ["matmulNT", { P: 1, M: 256, K: 252, N: 576 }, 64, 1],
    ["matmul", { P: 3, M: 64, K: 1024, N: 64 }, 64, 8],
  ] as const)("%s of %o: blocks of %i, %i splits", (form, sizes, side, splits) => {
    const { calls } = planOf({ maxBindingBytes: 2 ** 32, maxBufferBytes: 2 ** 33 }, form, sizes);
    expect(calls[0].kernel).toBe("matmul-block/main");
    expect([calls[0].call.consts!.BLOCK, calls[0].call.params.splits]).toEqual([side, splits]);
    expect(calls).toHaveLength(splits > 1 ? 2 : 1);
  });

  it("on subgroup matrices a split has at least 256 of k, and blocks are 128 x 128", () => {
    const calls: KernelCall[] = [];
    const device = new MetaDevice({ subgroupMatrices: true }, (kernel, call) => {
      if (kernel === "matmul-matrix/main") calls.push(call);
    });
    for (const inner of [504, 512, 1024, 4096]) {
      device.scope(() => {
        device.ops.linear(device.empty([128, inner]), device.empty([3584, inner], { dtype: "f16" }));
      });
    }
    expect(calls.map(({ params, grid }) => [params.splits, params.splitDepth, grid])).toEqual([
      [1, 504, 28],
      [2, 256, 56],
      [4, 256, 112],
      [4, 1024, 112],
    ]);
  });

  it("adapters that are not discrete GPUs do not split, unless their tiles are tuned to", () => {
    const sizes = { P: 1, M: 64, K: 8192, N: 64 };
    for (const profile of [
      { adapterClass: "integrated" },
      { adapterClass: "software", subgroupSize: 8 },
      { adapterClass: "software", subgroups: false },
    ] as const) {
      const { calls } = planOf(profile, "matmul", sizes);
      expect(calls.map(({ kernel }) => kernel)).not.toContain("matmul-split-k/main");
    }
    const tuned = planOf({ adapterClass: "integrated", tiles: DEFAULT_TILES }, "matmul", sizes);
    expect(tuned.calls[0].call.params.splits).toBe(64);
  });
});

it("a matmul on a software driver holds the textures of one window of a and of b at a time", () => {
  const extent = fours(16_000);
  const property = (form: Form, M: number, K: number, N: number) => {
    const profile = { adapterClass: "software", subgroupSize: 8 } as const;
    const { calls, workspace } = planOf(profile, form, { P: 1, M, K, N });
    expect(calls[0].kernel).toContain("matmul-rows/");
    expect(workspace).toBeLessThanOrEqual(2 ** 26); // 32 MiB and 16 MiB, and what their layout adds
  };
  fc.assert(fc.property(forms, extent, extent, extent, property), propertyRuns(300));
});

/** Extents with a long K and small results, by op, which replace those of the row's own draw. */
const LONG: Partial<Record<OpName, (pick: TestRandom) => Record<string, number | readonly number[]>>> = {
  matmul: longProduct,
  matmulNT: longProduct,
  matmulTN: longProduct,
  linear: (pick) => ({ N: [pick.int(5, 100)], I: 4 * pick.int(64, 240), O: 4 * pick.int(1, 25) }),
  lmHeadLoss: longHead,
  lmHeadLossBackwardW: longHead,
};

function longProduct(pick: TestRandom) {
  const four = (most: number) => 4 * pick.int(1, most / 4);
  return { P: pick.oneOf([[], [], [2], [3]]), M: four(100), K: 4 * pick.int(64, 240), N: four(100) };
}

function longHead(pick: TestRandom) {
  return { N: pick.int(1, 300), C: 4 * pick.int(1, 16), V: 4 * pick.int(64, 150) };
}

/** A row that draws long sums. */
function longRow(name: OpName): AnyOpRow {
  const row = rowOf(name) as AnyOpRow;
  const draw = (pick: TestRandom) => {
    const drawn = row.draw(pick);
    const dims = { ...drawn.dims, ...LONG[name]!(pick) };
    if (!("V" in dims)) return { ...drawn, dims };
    const targets = (size: number) => pick.ints(size, 0, (dims.V as number) - 1);
    return { ...drawn, dims, values: { ...drawn.values, targets } };
  };
  return { ...row, draw };
}

/** Limits under which a K of a few hundred has two to nine splits, with operands whole and in windows. */
const SETTINGS: [string, { maxBindingBytes?: number }][] = [
  ["whole", {}],
  ["in windows of 128 KiB", { maxBindingBytes: 2 ** 17 }],
];

describe.runIf(gpuAvailable).each(SETTINGS)("matmul with split-K, %s", (_, options) => {
  let gpu: WebGpuDevice;
  let meta: MetaDevice;
  let dispatched: string[] = [];
  const reference = new CpuDevice({ precision: "f64" });
  beforeAll(async () => {
    gpu = (await openTestGpu({ adapterClass: "discrete", ...options })) as WebGpuDevice;
    meta = new MetaDevice(gpu.profile, (kernel) => dispatched.push(kernel));
  });
  afterAll(() => gpu?.dispose());

  const seeds = fc.record({
    seed: fc.integer({ min: 0, max: 2 ** 31 }),
    elem: fc.constantFrom("f32", "f16"),
  });

  it.each(Object.keys(LONG) as OpName[])(
    "%s agrees with the reference and with meta, to the bit twice",
    async (name) => {
      let splitCases = 0;
      const property = timeBoxed(async ({ seed, elem }: { seed: number; elem: "f32" | "f16" }) => {
        const drawn = drawCase(longRow(name), new TestRandom(seed), elem);
        dispatched = [];
        meta.memory.resetPeak();
        gpu.memory.resetPeak();
        try {
          await runCase(meta, name, drawn);
        } catch (error) {
          // A row, or the smallest aligned window, does not fit a binding.
          if (error instanceof SidenetError && error.code === "T-TOO-LARGE") return;
          throw error;
        }
        if (dispatched.includes("matmul-split-k/main")) splitCases++;
        const got = await runCase(gpu, name, drawn);
        expect(meta.memory.peak()).toEqual(gpu.memory.peak());
        expect(await runCase(gpu, name, drawn)).toEqual(got);
        const problem = compareOutcomes(name, drawn, got, await runCase(reference, name, drawn));
        if (problem !== null) expect.fail(problem);
        expect(gpu.memory.liveCount).toBe(0);
      });
      await fc.assert(fc.asyncProperty(seeds, property), propertyRuns(15));
      // Windows of so few bytes hold too few tokens for a sum over them to be cut.
      const isShort = name === "lmHeadLossBackwardW" && options.maxBindingBytes !== undefined;
      expect(splitCases > 0, "some cases were split").toBe(!isShort);
    },
  );
});
