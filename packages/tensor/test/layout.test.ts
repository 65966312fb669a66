/** Laws of layout ops and reductions, on every device, and with tensors that no binding holds whole. */
import {
  CpuDevice,
  concatAll,
  type Device,
  logSoftmax,
  type Ops,
  Random,
  repeat,
  sliceAll,
  type Tensor,
  topKValues,
} from "@sidenet/tensor";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { assertClose, gpuAvailable, openTestGpu } from "./support.ts";

const kinds = gpuAvailable ? (["cpu", "webgpu", "webgpu in windows"] as const) : (["cpu"] as const);
const reference = new CpuDevice({ precision: "f64" });

describe.each(kinds)("layout and reductions on %s", (kind) => {
  let device: Device;
  beforeAll(async () => {
    // 4 KiB bindings: the 60 x 64 matrices below take four windows.
    if (kind === "cpu") device = new CpuDevice();
    else device = await openTestGpu(kind === "webgpu" ? {} : { maxBindingBytes: 4096 });
  });
  afterAll(() => device?.dispose());

  const normals = (d: Device, shape: readonly number[], stream = 0): Tensor =>
    d.tensor(new Random(5, stream).normals(shape.reduce((a, b) => a * b, 1)), shape);

  const values = async (body: (d: Device, ops: Ops) => Tensor, d = device) => {
    using result = d.scope(() => body(d, d.ops));
    return { values: await result.read(), shape: result.shape };
  };

  const agrees = async (body: (d: Device, ops: Ops) => Tensor, rel = 2e-5) => {
    const [got, want] = [await values(body), await values(body, reference)];
    expect(got.shape).toEqual(want.shape);
    assertClose(body.toString(), got.values, want.values, { rel, abs: 1e-6 }, null);
  };

  it("takes apart what it put together", async () => {
    const parts = [
      [2, 3, 4],
      [2, 1, 4],
      [2, 5, 4],
      [2, 0, 4],
    ];
    let start = 0;
    for (const [i, shape] of parts.entries()) {
      const stop = start + shape[1];
      const got = await values((d, ops) => {
        const whole = concatAll(
          ops,
          parts.map((part, stream) => normals(d, part, stream)),
          1,
        );
        return sliceAll(ops, whole, [0, start, 0], [2, stop, 4]);
      });
      expect(got.shape).toEqual(shape);
      expect([...got.values]).toEqual([...new Random(5, i).normals(got.values.length)]);
      start = stop;
    }
    expect(() => concatAll(device.ops, [], 0)).toThrow(/T-SHAPE/);
  });

  it("gives a tensor of its own where nothing is to be done", () => {
    device.scope(() => {
      const x = normals(device, [2, 3]);
      expect(sliceAll(device.ops, x, [0, 0], [2, 3])).not.toBe(x);
      expect(concatAll(device.ops, [x], 0)).not.toBe(x);
      expect(() => sliceAll(device.ops, x, [0], [2])).toThrow(/T-ATTR/);
    });
  });

  it("repeats each element in a row, finds the largest, sums as it goes", async () => {
    const pair = (d: Device) => d.tensor([1, 5, 3, 4, 2, 6], [2, 3]);
    expect([...(await values((d, ops) => repeat(ops, pair(d), 0, 2))).values]).toEqual([
      1, 5, 3, 1, 5, 3, 4, 2, 6, 4, 2, 6,
    ]);
    expect([...(await values((d, ops) => repeat(ops, pair(d), -1, 2))).values]).toEqual([
      1, 1, 5, 5, 3, 3, 4, 4, 2, 2, 6, 6,
    ]);
    expect([...(await values((d, ops) => topKValues(ops, pair(d), 2).values)).values]).toEqual([5, 3, 6, 4]);
    expect([...(await values((d, ops) => ops.argmax(pair(d), { axis: 0 }))).values]).toEqual([1, 0, 1]);
    expect([...(await values((d, ops) => ops.argmax(pair(d), { axis: null }))).values]).toEqual([5]);
    expect([...(await values((d, ops) => ops.cumsum(pair(d)))).values]).toEqual([1, 6, 9, 4, 6, 12]);
  });

  it("has log-probabilities that are finite where those of softmax are 0", async () => {
    const row = (d: Device) => d.tensor([0, 1000, -1000, 1001], [1, 4]);
    const { values: logs } = await values((d, ops) => logSoftmax(ops, row(d)));
    const shift = Math.log(1 + Math.exp(-1));
    const wanted = Float64Array.of(-1001 - shift, -1 - shift, -2001 - shift, -shift);
    assertClose("logSoftmax", logs, wanted, { rel: 2 ** -22 }, null);
  });

  it("computes the same in windows of rows", async () => {
    const x = (d: Device) => normals(d, [60, 64]);
    await agrees((d, ops) =>
      ops.softmax(x(d), d.tensor(new Uint8Array(64).fill(1, 3), [64], { dtype: "u8" })),
    );
    await agrees((d, ops) => ops.layerNorm(x(d), normals(d, [64], 1), normals(d, [64], 2)));
    for (const axis of [0, 1, null]) {
      await agrees((d, ops) => ops.sum(x(d), { axis }));
      await agrees((d, ops) => ops.mean(ops.scale(x(d), { factor: 100 }), { axis }));
    }
    await agrees((d, ops) => ops.max(x(d), { axis: 1 }));
    await agrees((d, ops) => ops.cumsum(x(d)));
    await agrees((d, ops) =>
      ops.transpose(ops.reshape(x(d), { shape: [60, 8, 8] }), { permutation: [0, 2, 1] }),
    );
    await agrees((d, ops) => ops.concat(x(d), x(d), { axis: 1 }));
    await agrees((d, ops) => ops.broadcast(normals(d, [64]), { shape: [60, 64], axis: 0 }));
  });

  it("copies in windows: whole rows, or parts of rows that no binding holds, from and to anywhere", async () => {
    for (const dtype of ["f32", "f16"] as const) {
      const rel = dtype === "f16" ? 1e-3 : 0; // the reference rounds nothing
      const x = (d: Device, shape: readonly number[]) => d.ops.cast(normals(d, shape), { to: dtype });
      for (const [shape, axis, start, count] of [
        [[60, 64], 0, 7, 50],
        [[60, 64], 1, 3, 60],
        [[5000], 0, 13, 4001],
        [[3, 1801], 1, 1, 1799],
        [[1, 3, 1801], 1, 1, 2],
      ] as const) {
        const length = shape.at(axis)! + 2;
        await agrees((d, ops) => ops.slice(x(d, shape), { axis, start, count }), rel);
        await agrees((d, ops) => ops.sliceBackward(x(d, shape), { axis, start: 1, length }), rel);
        await agrees((d, ops) => ops.concat(x(d, shape), x(d, shape), { axis }), rel);
        await agrees(
          (d, ops) =>
            ops.concat(x(d, shape), ops.slice(x(d, shape), { axis, count }), { axis: axis - shape.length }),
          rel,
        );
      }
      await agrees((d, ops) => {
        const cache = ops.cast(d.zeros([3, 30, 64]), { to: dtype });
        ops.cacheWrite(cache, x(d, [3, 7, 64]), { offset: 11 });
        return cache;
      }, rel);
    }
  });

  it("moves integers to the last bit, and masks by reshape alone", async () => {
    const ids = [2 ** 31 - 1, -(2 ** 31), 0x7fc00001, 1, -1, 0]; // as floats, NaN and denormals among them
    const x = (d: Device) => d.tensor(ids, [2, 3], { dtype: "i32" });
    const turned = await values((_, ops) => ops.transpose(concatAll(ops, [x(_), x(_)], 0)));
    expect([...turned.values]).toEqual([0, 1, 2].flatMap((i) => [ids[i], ids[i + 3], ids[i], ids[i + 3]]));
    const last = await values((d, ops) => sliceAll(ops, repeat(ops, x(d), 1, 2), [0, 3], [2, 5]));
    expect([...last.values]).toEqual([ids[1], ids[2], ids[4], ids[5]]);
    device.scope(() => {
      const mask = device.tensor([1, 0], [2], { dtype: "u8" });
      expect(device.ops.reshape(mask, { shape: [2, 1] }).dtype).toBe("u8");
      expect(() => device.ops.slice(mask, { count: 1 })).toThrow(/T-DTYPE.*slice.*u8/);
      expect(() => device.ops.concat(x(device), device.zeros([2, 3]))).toThrow(/T-DTYPE.*concat/);
    });
  });

  it("rotates sequences that no binding holds whole", async () => {
    const angles = (d: Device, f: (x: number) => number) =>
      d.tensor(
        Float64Array.from({ length: 30 * 16 }, (_, i) => f(i / 7)),
        [30, 16],
      );
    for (const B of [1, 3]) {
      await agrees((d, ops) =>
        ops.rope(normals(d, [B, 30, 2, 32]), angles(d, Math.cos), angles(d, Math.sin)),
      );
    }
  });

  it("transposes in windows of either side", async () => {
    for (const [shape, permutation] of [
      [
        [60, 64],
        [1, 0],
      ],
      [
        [128, 80],
        [1, 0],
      ],
      [
        [16, 12, 32],
        [2, 0, 1],
      ],
      [
        [16, 12, 32],
        [1, 0, 2],
      ],
      [
        [16, 12, 32],
        [2, 1, 0],
      ],
      [
        [16, 8, 4, 16],
        [3, 1, 0, 2],
      ],
    ] as const) {
      await agrees((d, ops) => ops.transpose(normals(d, shape), { permutation }));
    }
  });

  it("finds extremes and sums of gradients over windows, the first of equals wherever they stand", async () => {
    const whole = (d: Device) =>
      d.tensor(
        Float32Array.from({ length: 5000 }, (_, i) => (i * 7919) % 1250),
        [5000],
      );
    for (const pick of ["max", "min", "argmax"] as const) {
      for (const axis of [null, 0]) {
        await agrees((d, ops) => ops[pick](whole(d), { axis }));
        await agrees((d, ops) => ops[pick](normals(d, [60, 64]), { axis }));
        await agrees((d, ops) => ops[pick](ops.cast(whole(d), { to: "f16" }), { axis }));
      }
    }
    const index = async (d: Device) => {
      using found = d.scope(() => d.run("max", [whole(d)], {}, ["index"]).index);
      return await found.read();
    };
    expect(await index(device)).toEqual(await index(reference));
    await agrees((d, ops) =>
      ops.rmsNormBackwardGain(normals(d, [200, 8]), normals(d, [200, 8], 1), normals(d, [200], 2)),
    );
  });

  it("gives rows that are sums of 1, whatever is added to a row; what sees nothing is 0, and no value is too large", async () => {
    const row = [1e4, 9999, -1e4, 3e38, -3e38];
    const got = await values((d, ops) =>
      ops.softmax(
        d.tensor([...row, ...row, 1, 2, 3, 4, 5, 8193, 8194, 8195, 8196, 8197], [4, 5]),
        d.tensor([1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [4, 5], { dtype: "u8" }),
      ),
    );
    const rows = [0, 5, 10, 15].map((at) => [...got.values.slice(at, at + 5)]);
    expect(rows[0][0]).toBeCloseTo(1 / (1 + Math.exp(-1)), 6);
    expect(rows[1]).toEqual([0, 0, 0, 0, 0]);
    expect(rows[2]).toEqual(rows[3]);
    expect(rows[2].reduce((a, b) => a + b)).toBeCloseTo(1, 6);
    const all = await values((d, ops) => ops.softmax(d.tensor(row, [5])));
    expect([...all.values]).toEqual([0, 0, 0, 1, 0]);
  });

  it("refuses axes, masks and counts that do not fit, by name", () => {
    device.scope(() => {
      const x = normals(device, [2, 3]);
      const { ops } = device;
      expect(() => ops.sum(x, { axis: 2 })).toThrow(/T-ATTR.*axis 2/);
      expect(() => ops.transpose(x, { permutation: [0, 0] })).toThrow(/T-ATTR.*transpose/);
      expect(() => ops.concat(x, normals(device, [2, 2]), { axis: 0 })).toThrow(/T-SHAPE.*concat/);
      expect(() => ops.topK(x, { count: 4 })).toThrow(/T-ATTR.*topK/);
      expect(() => ops.max(device.zeros([2, 0]), { axis: 1 })).toThrow(/T-SHAPE.*max/);
      const mask = device.tensor([1, 1], [2], { dtype: "u8" });
      expect(() => ops.softmax(x, mask)).toThrow(/T-SHAPE: softmax|T-SHAPE.*softmax/);
    });
  });
});
