import {
  CpuDevice,
  compareOutcomes,
  type Device,
  drawCase,
  MetaDevice,
  type OpCase,
  type OpName,
  type Outcome,
  opNames,
  rowOf,
  runCase,
  SidenetError,
  TestRandom,
} from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { gpuAvailable, openTestGpu, propertyRuns, timeBoxed } from "./support.ts";

/** What is wrong with a case is thrown. */
function compare(name: OpName, drawn: OpCase, got: readonly Outcome[], expected: readonly Outcome[]): void {
  const problem = compareOutcomes(name, drawn, got, expected);
  if (problem !== null) expect.fail(problem);
}

const cases = fc.record({
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
  scale: fc.constantFrom(1, 0.5, 0.1, 0),
});

const ENGINES: [string, () => Promise<Device>][] = [
  ["WebAssembly", () => openNodeWasm({ poison: true })],
  ...(gpuAvailable ? [["WebGPU", openTestGpu] as [string, () => Promise<Device>]] : []),
];

/**
 * Rows that one device goes through in a long run. Lavapipe maps each descriptor set by itself, Dawn keeps a layout's sets as
 * long as the device lives, and Linux gives a process 65,530 maps: random shapes fill them after some 35 rows of 20 s.
 */
const ROWS_PER_DEVICE = process.env.SIDENET_SECONDS ? 8 : Number.POSITIVE_INFINITY;

describe.each(ENGINES)("every op on %s agrees with its reference", (_, open) => {
  let engine: Device;
  let meta: MetaDevice;
  let rows = 0;
  const reference = new CpuDevice({ precision: "f64" });

  const openEngine = async () => {
    engine?.dispose();
    engine = await open();
    meta = new MetaDevice(engine.profile);
  };
  beforeAll(openEngine);
  afterAll(() => engine?.dispose());

  for (const elem of ["f32", "f16", "i32", "u32"] as const) {
    it.each(opNames)(`%s, ${elem}`, async (name) => {
      const row = rowOf(name);
      const takes = row.signature.inputs.some(
        ({ dtype, accepts }) => dtype === null && accepts.includes(elem),
      );
      if (elem !== "f32" && !takes) return;
      if (++rows % ROWS_PER_DEVICE === 0) await openEngine();
      const property = timeBoxed(async ({ seed, scale }: { seed: number; scale: number }) => {
        const drawn = drawCase(row, new TestRandom(seed, scale), elem);
        const live = engine.memory.liveBytes;
        engine.memory.resetPeak();
        meta.memory.resetPeak();
        const expected = await runCase(reference, name, drawn);
        const got = await runCase(engine, name, drawn);
        const planned = await runCase(meta, name, drawn);
        expect(engine.memory.liveBytes).toBe(live);
        expect(meta.memory.peak()).toEqual(engine.memory.peak());
        expect(planned).toEqual(got.map((outcome) => ({ ...outcome, values: null })));
        compare(name, drawn, got, expected);
      });
      await fc.assert(fc.asyncProperty(cases, property), propertyRuns(200));
    });
  }
});

/** Bindings so small that many random cases go through in several windows. */
const NARROW_BYTES = 8192;

/** What a case gives, or null if it is too large for the device. */
const attempt = (device: Device, name: OpName, drawn: OpCase): Promise<Outcome[] | null> =>
  runCase(device, name, drawn).catch((error) => {
    if (error instanceof SidenetError && error.code === "T-TOO-LARGE") return null;
    throw error;
  });

describe.runIf(gpuAvailable)("every op in windows agrees with its reference, or says that it cannot", () => {
  let gpu: Device;
  let meta: MetaDevice;
  const reference = new CpuDevice({ precision: "f64" });
  beforeAll(async () => {
    gpu = await openTestGpu({ maxBindingBytes: NARROW_BYTES });
    meta = new MetaDevice(gpu.profile);
  });
  afterAll(() => gpu?.dispose());

  it.each(opNames)("%s", async (name) => {
    for (let seed = 1; seed <= 20; seed++) {
      const elem = gpu.profile.f16 && seed % 2 === 0 ? "f16" : "f32";
      const drawn = drawCase(rowOf(name), new TestRandom(seed), elem);
      const live = gpu.memory.liveBytes;
      const expected = await runCase(reference, name, drawn);
      gpu.memory.resetPeak();
      meta.memory.resetPeak();
      const [got, planned] = [await attempt(gpu, name, drawn), await attempt(meta, name, drawn)];
      expect(planned === null, "a plan refuses what the device refuses").toBe(got === null);
      expect(meta.memory.peak()).toEqual(gpu.memory.peak());
      if (got !== null) compare(name, drawn, got, expected);
      else {
        // Windows begin at multiples of 256 bytes, and workspace may be larger than what comes in and goes out.
        const values = [...drawn.inputs, ...expected].map((operand) => operand?.values?.length ?? 0);
        expect(4 * Math.max(...values), "it refused small operands").toBeGreaterThan(NARROW_BYTES / 8);
      }
      expect(gpu.memory.liveBytes).toBe(live);
    }
  });
});

describe.runIf(gpuAvailable)("every op by the kernels and tiles of a GPU agrees with its reference", () => {
  let gpu: Device;
  const reference = new CpuDevice({ precision: "f64" });
  beforeAll(async () => {
    gpu = await openTestGpu({ adapterClass: "discrete" });
  });
  afterAll(() => gpu?.dispose());

  it.each(opNames)("%s", async (name) => {
    for (let seed = 1; seed <= 10; seed++) {
      const drawn = drawCase(rowOf(name), new TestRandom(seed));
      compare(name, drawn, await runCase(gpu, name, drawn), await runCase(reference, name, drawn));
    }
  });
});
