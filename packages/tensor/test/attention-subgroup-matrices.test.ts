// Attention on subgroup matrices: the kernel's own WGSL, run as JavaScript, since no adapter of a test machine has subgroup matrices.
import {
  CpuDevice,
  compareOutcomes,
  DEFAULT_TILES,
  type Device,
  type DeviceProfile,
  drawCase,
  MetaDevice,
  type OpName,
  rowOf,
  runCase,
  TestRandom,
} from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { AnyOpRow } from "../src/op.ts";
import { tiledKernel } from "../src/ops/attention-kernels.ts";
import { DEFAULT_PROFILE } from "../src/profile.ts";
import { type AttentionCall, runAttention } from "./attention-call.ts";
import { assertClose, propertyRuns, timeBoxed } from "./support.ts";
import { WgslDevice } from "./wgsl/device.ts";

const OPS = ["attention", "attentionBackwardQ", "attentionBackwardKV"] as const satisfies OpName[];
const reference = new CpuDevice({ precision: "f64" });
const SUBGROUP_MATRICES = { subgroupMatrices: true, tiles: { ...DEFAULT_TILES, subgroupMatrixQueries: 16 } };
const openDevice = (profile: Partial<DeviceProfile> = {}) =>
  new WgslDevice({ ...SUBGROUP_MATRICES, ...profile });
const usesSubgroupMatrices = (device: WgslDevice) =>
  device.calls.some(({ kernel }) => kernel.startsWith("attention-matrix/"));

/** The row's own cases, with heads and queries that the kernel for subgroup matrices takes. */
function matrixRow(name: OpName): AnyOpRow {
  const row = rowOf(name) as AnyOpRow;
  const draw = (pick: TestRandom) => {
    const drawn = row.draw(pick);
    const { T, S } = drawn.dims as Record<string, number>;
    const more = Math.max(0, 16 - T);
    const D = pick.oneOf([16, 32, 48, 64, 64, 96, 128, 20, 72, 124, 33, 99]);
    return { ...drawn, dims: { ...drawn.dims, T: T + more, S: S + more, D } };
  };
  return { ...row, draw };
}

describe.each(OPS)("%s on subgroup matrices", (name) => {
  it.each(["f16", "f32"] as const)("agrees with the reference on random cases in %s", async (elem) => {
    const device = openDevice();
    const property = timeBoxed(async (seed: number) => {
      const drawn = drawCase(matrixRow(name), new TestRandom(seed), elem);
      device.calls.length = 0;
      const got = await runCase(device, name, drawn);
      expect(usesSubgroupMatrices(device), "subgroup matrices were used").toBe(true);
      const want = await runCase(reference, name, drawn);
      const problem = compareOutcomes(name, drawn, got, want, device.profile);
      if (problem !== null) expect.fail(problem);
      expect(device.memory.liveCount).toBe(0);
    });
    await fc.assert(fc.asyncProperty(fc.integer({ min: 0, max: 2 ** 31 }), property), propertyRuns(6));
  });
});

/** Reads all outputs and frees them. */
async function outcomes(device: Device, call: AttentionCall): Promise<Record<string, Float32Array>> {
  const made = runAttention(device, call);
  const values: Record<string, Float32Array> = {};
  for (const [name, tensor] of Object.entries(made)) {
    values[name] = Float32Array.from(await tensor.read());
    tensor.dispose();
  }
  expect(device.memory.liveCount).toBe(0);
  return values;
}

async function agrees(device: WgslDevice, call: AttentionCall, rel: number): Promise<void> {
  const [got, want] = [await outcomes(device, call), await outcomes(reference, call)];
  expect(usesSubgroupMatrices(device)).toBe(true);
  for (const name in want)
    assertClose(`${name} of ${call.dims}`, got[name], want[name], { rel, abs: 1e-30 }, null);
}

/** Factors of 1, but for one row: the largest scales are found by the workgroup together. */
const only = (which: number, size: number) => (row: number) => (row === which ? size : 1);

describe("attention on subgroup matrices", () => {
  const keyMask = (b: number, s: number) => Number((s + b) % 5 > 0);
  const segments = (b: number, s: number) => Math.floor((s + 5 * b) / 70) - 1;

  it("goes through bindings in windows of queries", async () => {
    const device = openDevice({ maxBindingBytes: 20480, maxWorkgroupsPerAxis: 9 }); // grids are folded
    await agrees(device, { dims: [2, 70, 70, 2, 1, 64] }, 2 ** -8);
    await agrees(device, { dims: [2, 50, 70, 2, 1, 64], queryOffset: 20, segments, keyMask }, 2 ** -8);
    const windows = device.calls.filter(({ kernel }) => kernel === "attention-matrix/forward");
    expect(windows.length).toBeGreaterThan(4);
  });

  it("shares the rows of a key tile between workgroups, and skips tiles that segments hide", async () => {
    const device = openDevice();
    await agrees(device, { dims: [1, 129, 129, 4, 1, 64], segments, keyMask }, 2 ** -8);
    const { call } = device.calls.findLast(({ kernel }) => kernel === "attention-matrix/backward")!;
    expect(call.params.splits).toBe(2);
  });

  it("does not skip a tile of which one query sees one key", async () => {
    const sparse = (_: number, s: number) => (s % 64 === 0 ? -1 : Math.floor(s / 32));
    await agrees(openDevice(), { dims: [1, 70, 70, 1, 1, 16], segments: sparse }, 2 ** -8);
  });

  it.each([0, 256])("finds the largest scale at key %i", async (largest) => {
    const by = { v: only(largest, 1e6) };
    await agrees(openDevice(), { dims: [1, 16, 260, 1, 1, 16], queryOffset: 244, by }, 2 ** -7);
  });

  it("rescales its sums when maxima grow, tile after tile", async () => {
    // Scores with a deviation of 8 x the tile: each finds larger ones.
    const grow = (row: number) => 1 + 4 * Math.floor(row / 64);
    // 65 queries: a second tile has a single one.
    await agrees(openDevice(), { dims: [1, 65, 256, 1, 1, 128], queryOffset: 191, by: { k: grow } }, 2 ** -5);
  });

  it.each([
    ["gradients of 1e-9", { dy: () => 1e-9 }, 2 ** -8],
    ["values of 1e6 and of 1e-6 beside each other", { v: (row: number) => (row % 2 ? 1e6 : 1e-6) }, 2 ** -8],
    ["queries of 1e5 and keys of 1e-5", { q: () => 1e5, k: () => 1e-5 }, 2 ** -8],
    ["gradients of rows a million apart", { dy: (row: number) => 10 ** ((row % 7) - 6) }, 2 ** -8],
    ["a value and a gradient a million times all others", { v: only(36, 1e6), dy: only(70, 1e6) }, 2 ** -7],
    ["everything near the largest f16", { v: () => 6e4, dy: () => 6e4 }, 2 ** -8],
  ] as const)("keeps %s", async (_, by, rel) => {
    await agrees(openDevice(), { dims: [1, 40, 40, 2, 1, 64], by }, rel);
  });

  it("a query without visible keys gives 0; one with a single visible key has no gradient for q and k", async () => {
    const device = openDevice();
    const none = await outcomes(device, { dims: [1, 40, 40, 2, 1, 16], keyMask: () => 0 });
    for (const name of ["y", "dq", "dk", "dv"]) expect(none[name].every((x) => x === 0)).toBe(true);
    for (const call of [
      { dims: [1, 20, 20, 4, 2, 16], keyMask: (_: number, s: number) => Number(s === 3) },
      { dims: [1, 70, 70, 2, 1, 64], segments: (_: number, s: number) => s },
    ]) {
      const { dq, dk } = await outcomes(device, call);
      for (const gradient of [dq, dk]) expect(gradient.every((x) => x === 0)).toBe(true);
    }
  });
});

describe("the choice of subgroup matrices", () => {
  const kernelsOf = (profile: Partial<DeviceProfile>, [T, H, D]: readonly number[]) => {
    const kernels = new Set<string>();
    const meta = new MetaDevice(profile, (kernel) => kernels.add(kernel.split("/")[0]));
    meta.scope(() => {
      const [q, k, v] = [H, 1, 1].map((heads) => meta.empty([1, T, heads, D]));
      meta.ops.attention(q, k, v);
    });
    return [...kernels];
  };

  it.each([
    [SUBGROUP_MATRICES, [40, 2, 64], ["f16-rows", "attention-matrix"]],
    [SUBGROUP_MATRICES, [16, 1, 16], ["f16-rows", "attention-matrix"]],
    [SUBGROUP_MATRICES, [16, 1, 128], ["f16-rows", "attention-matrix"]],
    [SUBGROUP_MATRICES, [40, 2, 10], ["copy-rows", "attention-block"]],
    [SUBGROUP_MATRICES, [40, 2, 8], ["attention-block"]],
    [SUBGROUP_MATRICES, [40, 2, 160], ["attention-block"]],
    [SUBGROUP_MATRICES, [15, 1, 64], ["attention-block"]],
    [SUBGROUP_MATRICES, [4, 1, 64], ["attention-few"]],
    [SUBGROUP_MATRICES, [1, 24, 64], ["attention-few"]], // one token, whatever the number of its heads
    [{}, [8, 1, 1024], ["attention-few"]],
    [{}, [8, 1, 10], ["attention-few"]],
    [{}, [9, 1, 64], ["attention-block"]],
    [{}, [8, 1, 1028], ["attention-tile"]],
    [
      { subgroupMatrices: true, tiles: { ...DEFAULT_TILES, subgroupMatrixQueries: 0 } },
      [40, 2, 64],
      ["attention-block"],
    ],
    [{ subgroupMatrices: true }, [40, 2, 64], ["attention-block"]],
    [
      { subgroupMatrices: true, tiles: { ...DEFAULT_TILES, subgroupMatrixQueries: 256 } },
      [40, 2, 64],
      ["attention-block"],
    ],
    [{}, [40, 2, 64], ["attention-block"]],
  ] as const)("%o with [T, H, D] = %j takes %j", (profile, extents, kernels) => {
    expect(kernelsOf(profile, extents)).toEqual(kernels);
  });
});

it.each([
  [{}, [129, 4], 2], // 9 tiles of rows: at least 4 for each
  [{}, [640, 1], 1], // 10, but one head: more would take more workspace than q
  [{}, [8192, 8], 4], // 128 tiles of keys: 512 workgroups
  [{ maxBindingBytes: 2 ** 22 }, [8192, 8], 2], // partial sums fit a binding
] as const)("on a GPU with %o and [T, H] = %j, %i workgroups share a key tile", (profile, [T, H], splits) => {
  const found: unknown[] = [];
  const meta = new MetaDevice(profile, (kernel, { params }) => {
    if (kernel === "attention-block/backward") found.push(params.splits);
  });
  meta.scope(() => {
    const [queries, keys] = [H, 1].map((heads) => meta.empty([1, T, heads, 64]));
    const saved = [queries, queries, keys, keys, queries, meta.empty([1, T, H, 2]), null, null];
    meta.run("attentionBackwardKV", saved, { queryOffset: 0 });
  });
  expect(found.at(-1)).toBe(splits);
});

it.each([
  ["attention-matrix", {}],
  ["attention-matrix", { maxWorkgroupBytes: 49152 }],
  ["attention-block", { maxWorkgroupBytes: 32768 }],
  ["attention-block", { subgroupMatrices: false }],
] as const)("%s runs where the profile has %o", (kernel, profile) => {
  const extents = { B: 1, T: 512, S: 512, G: 3, H: 9, D: 64, queryOffset: 0, scale: 1 };
  expect(tiledKernel({ ...DEFAULT_PROFILE, subgroupMatrices: true, ...profile }, extents)).toBe(kernel);
  expect(
    tiledKernel({ ...DEFAULT_PROFILE, subgroupMatrices: true, ...profile }, { ...extents, T: 256 }),
  ).toBe(
    "attention-block", // too few rows
  );
});
