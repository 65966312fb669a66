import { CpuDevice, type Device, Random, type Tensor } from "@sidenet/tensor";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { broadcastShape, joinAxes } from "../src/broadcasting.ts";
import { assertClose, gpuAvailable, openTestGpu } from "./support.ts";

it("aligns shapes at their last axes, and refuses by name what does not fit", () => {
  expect(
    broadcastShape("add", [
      [2, 1, 4],
      [3, 1],
    ]),
  ).toEqual([2, 3, 4]);
  expect(broadcastShape("add", [[], [5]])).toEqual([5]);
  expect(broadcastShape("add", [[0, 3], [1]])).toEqual([0, 3]);
  expect(() => broadcastShape("add", [[2, 3], [2]])).toThrow(/T-SHAPE.*add: \[2, 3\] and \[2\]/);
  expect(() => broadcastShape("mul", [[0], [2]])).toThrow(/T-SHAPE/);
});

it("joins neighbouring axes that the same operands have", () => {
  const [a, b] = [
    [4, 5, 6],
    [1, 5, 6],
  ];
  expect(joinAxes([4, 5, 6], [a, b])).toEqual([
    { extent: 4, has: [true, false] },
    { extent: 30, has: [true, true] },
  ]);
  expect(joinAxes([1, 1], [[1, 1], []])).toEqual([]);
});

describe.runIf(gpuAvailable)("broadcasting on WebGPU", () => {
  let gpu: Device;
  const cpu = new CpuDevice({ precision: "f64" });
  beforeAll(async () => {
    gpu = await openTestGpu({ maxBindingBytes: 16384 }); // 4,096 floats: most operands below go through in windows
  });
  afterAll(() => gpu?.dispose());

  const agrees = async (shapes: readonly number[][], call: (d: Device, operands: Tensor[]) => Tensor) => {
    const run = (d: Device) =>
      d.scope(() => {
        const operands = shapes.map((shape, i) =>
          d.tensor(new Random(3, i).normals(shape.reduce((x, y) => x * y, 1)), shape),
        );
        return call(d, operands);
      });
    using got = run(gpu);
    using want = run(cpu);
    expect(got.shape).toEqual(want.shape);
    assertClose(`${shapes.join(" and ")}`, await got.read(), await want.read(), { rel: 1e-6 }, null);
  };

  it("computes the same in windows: a row, a column, a scalar, both operands repeated", async () => {
    for (const shapes of [
      [[128, 40], [40]],
      [
        [128, 40],
        [128, 1],
      ],
      [[5000], []],
      [
        [64, 1, 20],
        [1, 8, 20],
      ],
      [
        [2, 1, 3, 1, 2, 1],
        [1, 5, 1, 3, 1, 7],
      ],
    ]) {
      await agrees(shapes, (d, [a, b]) => d.ops.sub(a, b));
      await agrees(shapes, (d, [a, b]) => d.ops.where(d.ops.less(a, b), a, b));
    }
  });

  it("refuses a row that no window holds, and more runs of axes than the kernel takes apart, by name", () => {
    gpu.scope(() => {
      const [long, column] = [gpu.zeros([2, 8192]), gpu.zeros([2, 1])];
      expect(() => gpu.ops.add(long, column)).toThrow(/T-TOO-LARGE: add|T-TOO-LARGE.*add/);
      const [even, odd] = [gpu.zeros([2, 1, 2, 1, 2, 1, 2]), gpu.zeros([1, 2, 1, 2, 1, 2, 1])];
      expect(() => gpu.ops.add(even, odd)).toThrow(/T-SHAPE.*add.*6 runs/);
    });
  });
});
