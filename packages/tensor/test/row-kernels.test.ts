import {
  CpuDevice,
  compareOutcomes,
  type Device,
  drawCase,
  type OpName,
  rowOf,
  runCase,
  TestRandom,
} from "@sidenet/tensor";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { columnGroups, partGroups, rowGroups } from "../src/ops/row-groups.ts";
import { DEFAULT_PROFILE, type DeviceProfile } from "../src/profile.ts";
import { addKernelSource, kernelSource, specialize } from "../src/webgpu/kernel-source.ts";
import { gpuAvailable, openTestGpu } from "./support.ts";

const ROW_OPS: readonly OpName[] = [
  "rmsNorm",
  "rmsNormBackwardX",
  "rmsNormBackwardGain",
  "layerNorm",
  "layerNormBackwardX",
  "layerNormBackwardGain",
  "softmax",
  "softmaxBackward",
  "crossEntropy",
  "crossEntropyBackward",
  "rope",
];

/** What ops.test.ts, which has every op as on a discrete GPU in f32, leaves out: adapter, elements and seeds of cases. */
const ADAPTERS = {
  "a GPU with subgroups, f16": [{ adapterClass: "discrete" }, "f16", [4, 20]],
  "a GPU without subgroups, f32": [{ adapterClass: "integrated", subgroups: false }, "f32", [4, 7, 20]],
} as const;

describe.runIf(gpuAvailable).each(Object.entries(ADAPTERS))(
  "ops over rows as on %s",
  (_, [options, elem, seeds]) => {
    let gpu: Device;
    const reference = new CpuDevice({ precision: "f64" });
    beforeAll(async () => {
      gpu = await openTestGpu(options);
    });
    afterAll(() => gpu?.dispose());

    // Each variant of these kernels takes a software driver a second or more the first time: three kinds of rows are enough here.
    it.each(ROW_OPS)(
      "%s agrees with its reference, in vectors, in an odd row and in a wide one",
      async (name) => {
        for (const seed of seeds) {
          const drawn = drawCase(rowOf(name), new TestRandom(seed), elem);
          const [got, expected] = [await runCase(gpu, name, drawn), await runCase(reference, name, drawn)];
          const problem = compareOutcomes(name, drawn, got, expected);
          if (problem !== null) expect.fail(`seed ${seed}: ${problem}`);
          expect(gpu.memory.liveCount).toBe(0);
        }
      },
    );
  },
);

describe("groups of threads over rows", () => {
  const profiles: DeviceProfile[] = [
    DEFAULT_PROFILE,
    { ...DEFAULT_PROFILE, subgroups: false },
    { ...DEFAULT_PROFILE, adapterClass: "software", subgroupSize: 8 },
  ];

  it("reach every row and every column, with no more threads than every adapter has", () => {
    for (const profile of profiles) {
      for (let seed = 0; seed < 300; seed++) {
        const pick = new TestRandom(seed);
        const [rows, columns] = [pick.int(1, 100_000), pick.int(1, pick.oneOf([300, 9000, 200_000]))];
        const whole = rowGroups(profile, { rows, columns });
        const { LANES, WIDTH } = whole.consts;
        expect(LANES).toBeLessThanOrEqual(256);
        expect(whole.vectors * WIDTH).toBe(columns);
        expect(whole.grid * whole.each).toBeGreaterThanOrEqual(rows);
        expect((whole.grid - 1) * whole.each).toBeLessThan(rows);
        const parts = partGroups(profile, { rows, columns });
        expect(parts.grid).toBe(rows * parts.each);
        const sums = columnGroups(profile, columns);
        expect(sums.grid * 8).toBeGreaterThanOrEqual(sums.vectors);
      }
    }
  });

  it("keep a row of up to 8,192 elements in registers on a GPU, and give a row of a vocabulary many loads at once", () => {
    for (const columns of [4, 256, 576, 1536, 3584, 4096, 8192]) {
      const { consts, vectors } = rowGroups(DEFAULT_PROFILE, { rows: 2048, columns });
      expect(consts.LANES * consts.KEPT, `${columns} columns`).toBeGreaterThanOrEqual(vectors);
    }
    const { consts, grid } = rowGroups(DEFAULT_PROFILE, { rows: 128, columns: 152_064 });
    expect(16 * consts.LANES * consts.KEPT).toBeGreaterThanOrEqual(2 ** 15);
    expect(grid).toBe(128);
    expect(partGroups(DEFAULT_PROFILE, { rows: 128, columns: 152_064 }).grid).toBe(2048);
  });

  it("have vectors only where blocks and what is left of a row are multiples of 4", () => {
    const width = (columns: number, allColumns: number) =>
      rowGroups(DEFAULT_PROFILE, { rows: 1, columns, allColumns }).consts.WIDTH;
    expect([width(64, 4096), width(64, 4095), width(63, 4096), width(4095, 4095)]).toEqual([4, 1, 1, 1]);
  });
});

it("a constant chooses among the lines below a line, also where the kernel has no such constant", () => {
  const text = [
    "enable subgroups;",
    "// WIDTH=1:",
    "alias x_v = vec4<f32>;",
    "// WIDTH=1: alias x_v = f32;",
    "// WIDTH=2: alias x_v = vec2<f32>;",
    "@group(0) @binding(0) var<storage, read_write> x: array<x_v>;",
  ].join("\n");
  addKernelSource("chooses-lines", text);
  const variant = (consts: Record<string, number>, half = false) =>
    specialize(kernelSource("chooses-lines"), {
      dtypes: { x: half ? "f16" : "f32" },
      consts,
      bodies: {},
      immediates: true,
    }).split("\n");
  expect(variant({})).toEqual(["enable subgroups;", "alias x_v = vec4<f32>;", expect.any(String)]);
  expect(variant({ WIDTH: 4 })[1]).toBe("alias x_v = vec4<f32>;");
  expect(variant({ WIDTH: 2 })[1]).toBe("alias x_v = vec2<f32>;");
  expect(variant({ WIDTH: 1 }).slice(0, 2)).toEqual(["", "alias x_v = f32;"]);
  expect(variant({ WIDTH: 1 }, true).slice(0, 2)).toEqual(["enable f16; ", "alias x_v = f16;"]);
  expect(() => variant({ HEIGHT: 1 })).toThrow(/T-KERNEL.*no const HEIGHT/s);
});
