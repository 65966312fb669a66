import {
  CpuDevice,
  type Device,
  type DType,
  drawCase,
  type HostArray,
  isFloat,
  MetaDevice,
  type OpName,
  opNames,
  Pick,
  rowOf,
  SidenetError,
  type Tensor,
} from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { assertClose, gpuAvailable, openTestGpu, propertyRuns, timeBoxed } from "./support.ts";

/** What an op leaves behind on a device: outputs, then inputs it updated. */
interface Outcome {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly values: HostArray | null;
}

type Case = ReturnType<typeof drawCase>;

/** Runs a case in a scope of its own and reads everything it wrote. */
async function runCase(device: Device, name: OpName, drawn: Case): Promise<Outcome[]> {
  const row = rowOf(name);
  const residuals = row.signature.outputs
    .filter((operand) => operand.residual)
    .map((operand) => operand.name);
  const inputs = drawn.inputs.map(
    (input) => input && device.tensor(input.values, input.shape, { dtype: input.dtype }),
  );
  let outputs: Record<string, Tensor> = {};
  try {
    outputs = device.run(name, inputs, drawn.attrs, residuals);
    const written: [string, Tensor][] = Object.entries(outputs);
    for (const [i, operand] of row.signature.inputs.entries()) {
      if (operand.updated) written.push([operand.name, inputs[i]!]);
    }
    const outcomes: Outcome[] = [];
    for (const [key, tensor] of written) {
      const values = device.kind === "meta" ? null : await tensor.read();
      outcomes.push({ name: key, shape: tensor.shape, dtype: tensor.dtype, values });
    }
    return outcomes;
  } finally {
    for (const tensor of [...inputs, ...Object.values(outputs)]) tensor?.dispose();
  }
}

/** Extents of a case, as the row's tolerance wants them. */
function dimsOf(name: OpName, drawn: Case): Record<string, number> {
  const dims: Record<string, number> = {};
  const row = rowOf(name);
  const bound = row.draw(new Pick(0)).dims; // the letters
  for (const [i, operand] of row.signature.inputs.entries()) {
    const shape = drawn.inputs[i]?.shape;
    if (!shape) continue;
    const run = operand.dims.findIndex((dim) => dim.endsWith(".."));
    const extra = shape.length - operand.dims.length;
    for (const [axis, letter] of operand.dims.entries()) {
      if (axis === run) {
        const part = shape.slice(axis, axis + extra + 1);
        dims[letter.slice(0, -2)] = part.reduce((a, b) => a * b, 1);
      } else dims[letter] = shape[run >= 0 && axis > run ? axis + extra : axis];
    }
  }
  for (const letter in bound) dims[letter] ??= 1;
  const inferred = row.infer?.(
    drawn.inputs.map((input) => input!),
    { ...row.attrs, ...drawn.attrs },
  );
  return { ...dims, ...inferred?.dims };
}

/** What went wrong with a result is thrown. */
function compare(name: OpName, drawn: Case, got: readonly Outcome[], expected: readonly Outcome[]): void {
  const row = rowOf(name);
  const close = typeof row.close === "function" ? row.close(dimsOf(name, drawn)) : row.close;
  for (const [i, outcome] of got.entries()) {
    expect(outcome.shape).toEqual(expected[i].shape);
    assertClose(
      `${name}.${outcome.name}`,
      outcome.values!,
      expected[i].values!,
      close,
      isFloat(outcome.dtype) ? outcome.dtype : null,
    );
  }
}

const cases = fc.record({
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
  scale: fc.constantFrom(1, 0.5, 0.1, 0),
});

const ENGINES: [string, () => Promise<Device>][] = [
  ["WebAssembly", () => openNodeWasm({ poison: true })],
  ...(gpuAvailable ? [["WebGPU", openTestGpu] as [string, () => Promise<Device>]] : []),
];

describe.each(ENGINES)("every op on %s agrees with its reference", (_, open) => {
  let engine: Device;
  let meta: MetaDevice;
  const reference = new CpuDevice({ precision: "f64" });

  beforeAll(async () => {
    engine = await open();
    meta = new MetaDevice(engine.profile);
  });
  afterAll(() => engine?.dispose());

  for (const elem of ["f32", "f16", "i32", "u32"] as const) {
    it.each(opNames)(`%s, ${elem}`, async (name) => {
      const row = rowOf(name);
      const takes = row.signature.inputs.some(
        ({ dtype, accepts }) => dtype === null && accepts.includes(elem),
      );
      if (elem !== "f32" && !takes) return;
      const property = timeBoxed(async ({ seed, scale }: { seed: number; scale: number }) => {
        const drawn = drawCase(row, new Pick(seed, scale), elem);
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
      await fc.assert(
        fc.asyncProperty(cases, property),
        propertyRuns(row.signature.inputs.length > 0 ? 200 : 50),
      );
    });
  }
});

/** Bindings so small that many random cases go through in several windows. */
const NARROW_BYTES = 8192;

describe.runIf(gpuAvailable)("every op in windows agrees with its reference, or says that it cannot", () => {
  let gpu: Device;
  const reference = new CpuDevice({ precision: "f64" });
  beforeAll(async () => {
    gpu = await openTestGpu({ maxBindingBytes: NARROW_BYTES });
  });
  afterAll(() => gpu?.dispose());

  it.each(opNames)("%s", async (name) => {
    for (let seed = 1; seed <= 20; seed++) {
      const drawn = drawCase(rowOf(name), new Pick(seed));
      const live = gpu.memory.liveBytes;
      const expected = await runCase(reference, name, drawn);
      try {
        compare(name, drawn, await runCase(gpu, name, drawn), expected);
      } catch (error) {
        if (!(error instanceof SidenetError && error.code === "T-TOO-LARGE")) throw error;
        // Windows begin at multiples of 256 bytes, and workspace may be larger than what comes in and goes out.
        const values = [...drawn.inputs, ...expected].map((operand) => operand?.values?.length ?? 0);
        expect(4 * Math.max(...values), "it refused small operands").toBeGreaterThan(NARROW_BYTES / 8);
      }
      expect(gpu.memory.liveBytes).toBe(live);
    }
  });
});
