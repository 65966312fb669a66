/** Values at the edges of float32: results stay finite and right, since WGSL promises nothing about infinities and NaN. */
import { CpuDevice, type Device, type OpName, opNames, rowOf, type Tensor } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { gpuAvailable, openTestGpu } from "./support.ts";

const EDGES = [0, -0, 1e-40, -1e-40, 1e-30, 0.5, -1, 12, -12, 88, -104, 1e4, -1e4, 65504, 3e38, -3e38].map(
  Math.fround,
);
/** Beyond these magnitudes a product, or a sum, overflows float32. */
const NARROW = EDGES.filter((x) => Math.abs(x) < 1e15);

const unaryNames = opNames.filter((name) => rowOf(name).sig === "x[N..] -> y[N..]");
const binaryNames = opNames.filter((name) => /^a\[A\.\.\] b\[B\.\.\] -> /.test(rowOf(name).sig));
const OVERFLOWING: readonly OpName[] = ["pow"];

const DEVICES: [name: string, open: () => Promise<Device>][] = [["wasm", openNodeWasm]];
if (gpuAvailable) DEVICES.push(["webgpu", openTestGpu]);

describe.each(DEVICES)("elementwise ops on %s at the edges of float32", (_, open) => {
  let device: Device;
  const cpu = new CpuDevice({ precision: "f64" });
  beforeAll(async () => {
    device = await open();
  });
  afterAll(() => device?.dispose());

  const compare = async (name: OpName, operands: readonly number[][]) => {
    const run = (d: Device) =>
      d.scope(() => {
        const inputs = operands.map((values) => d.tensor(values, [values.length]));
        return Object.values(d.run(name, inputs))[0];
      });
    using got = run(device);
    using want = run(cpu);
    const [found, expected] = [await got.read(), await want.read()];
    for (let i = 0; i < expected.length; i++) {
      const at = `${name}(${operands.map((values) => values[i])})`;
      // e^88 may be 179 units in the last place off; subnormal results may become 0.
      const limit = 3e-5 * Math.abs(expected[i]) + 2e-7;
      expect(Number.isFinite(found[i]), `${at} is ${found[i]}`).toBe(true);
      expect(
        Math.abs(found[i] - expected[i]),
        `${at} is ${found[i]}, not ${expected[i]}`,
      ).toBeLessThanOrEqual(limit);
    }
  };

  it.each(unaryNames)("%s", (name) => compare(name, [OVERFLOWING.includes(name) ? NARROW : EDGES]));

  it.each(binaryNames)("%s", async (name) => {
    const pairs = NARROW.flatMap((a) => NARROW.map((b) => [a, b] as const)).filter(([a, b]) => {
      if (name === "div") return Math.abs(b) >= 0.5;
      // Whether a denormal is 0 is the device's choice.
      return (
        rowOf(name).signature.outputs[0].dtype !== "u8" || [a, b].every((x) => x === 0 || Math.abs(x) > 1e-37)
      );
    });
    await compare(name, [pairs.map(([a]) => a), pairs.map(([, b]) => b)]);
  });

  it("exp and softmax of what is far below 0 are at most 1.3e-38", async () => {
    const lows = [Number.NEGATIVE_INFINITY, -3e38, -200];
    using x = device.tensor([...lows, 0], [4]);
    using exp = device.ops.exp(x);
    using softmax = device.ops.softmax(x);
    for (const y of [await exp.read(), await softmax.read()]) {
      expect(y[3]).toBe(1);
      for (const value of y.slice(0, 3)) expect(value >= 0 && value <= 1.3e-38, `${value}`).toBe(true);
    }
  });

  it("fill writes what is no number", async () => {
    using x = device.zeros([3]);
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
      device.ops.fill(x, { value });
      expect([...(await x.read())]).toEqual([value, value, value]);
    }
  });

  it("cast to f16 keeps what is past its range at the largest half", async () => {
    if (!device.profile.f16) return;
    const values = [65504, 65519, 65536, 1e6, 3e38, -1e5, -3e38, 1];
    const largest = [65504, 65504, 65504, 65504, 65504, -65504, -65504, 1];
    for (const d of [device, cpu]) {
      using half = d.scope(() => d.ops.cast(d.tensor(values, [values.length]), { to: "f16" }));
      expect([...(await half.read())]).toEqual(largest);
    }
  });

  it("the gradients of silu and rmsNorm, whose factors overflow and underflow", async () => {
    const run = (d: Device) =>
      d.scope(() => {
        const row = (values: number[]) => d.tensor(values, [1, values.length]);
        const [ones, x] = [row([1, 1, 1, 1]), row([1e17, -2e17, 3e17, 0])];
        const { dgate } = d.run("siluMulBackward", [ones, row([3e38, -3e38, -1e4, 0]), ones]);
        const rstd = d.tensor([1e-17 / Math.sqrt(3.5)], [1]);
        const { dx } = d.run("rmsNormBackwardX", [row([1, 2, 3, 4]), x, rstd, null]);
        return [dgate, d.ops.scale(dx, { factor: 1e17 })];
      });
    const [found, expected] = [run(device), run(cpu)];
    for (const [i, tensor] of found.entries()) {
      const [values, reference] = [await tensor.read(), await expected[i].read()];
      for (let j = 0; j < values.length; j++) expect(values[j]).toBeCloseTo(reference[j], 5);
    }
    for (const tensor of [...found, ...expected]) tensor.dispose();
  });
});

/** WGSL promises nothing about NaN, so only WebAssembly is held to this. */
it("a NaN is one in the results on WebAssembly where it is in the reference's", async () => {
  const devices = [await openNodeWasm(), new CpuDevice()];
  const nans = async (d: Device, body: (x: Tensor) => Tensor, shape: readonly number[]) => {
    using y = d.scope(() => body(d.tensor([0.5, Number.NaN, 2, 3, 4], shape)));
    return Array.from(await y.read(), Number.isNaN);
  };
  for (const name of unaryNames) {
    const [got, want] = await Promise.all(
      devices.map((d) => nans(d, (x) => Object.values(d.run(name, [x]))[0], [5])),
    );
    expect(got, name).toEqual(want);
  }
  for (const d of devices) {
    using targets = d.tensor([0], [1], { dtype: "i32" });
    expect(await nans(d, (x) => d.ops.crossEntropy(x, targets), [1, 5])).toEqual([true]);
    expect(await nans(d, (x) => d.ops.softmax(x), [5])).not.toContain(false);
  }
  devices[0].dispose();
});
