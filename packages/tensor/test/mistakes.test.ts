// Mistakes of programs that TypeScript does not check strictly: the error names them, and no tensor is left behind.
import {
  CpuDevice,
  type DType,
  MetaDevice,
  ParamStore,
  Random,
  runCase,
  type Shape,
  SidenetError,
  type Tensor,
} from "@sidenet/tensor";
import { openDevice, openNodeWasm } from "@sidenet/tensor/node";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { loose, messageOf, propertyRuns } from "./support.ts";

describe("an operand", () => {
  it("that is no tensor is named", () => {
    const device = new CpuDevice();
    using x = device.tensor([1], [1]);
    expect(messageOf(() => loose(device).add(x, 2))).toMatch(/\[T-SHAPE\] add: b is 2, wanted a tensor/);
    expect(messageOf(() => loose(device).rmsNorm(x, { eps: 1 }))).toMatch(
      /gain is an object with eps.*null for one that is left out/,
    );
  });

  it("of a shape that contradicts another's is named with the extents that bind it", () => {
    const device = new MetaDevice();
    device.scope(() => {
      const [x, deep, w, scalar] = [[32, 640], [2, 3, 640], [512, 768], []].map((s) => device.empty(s));
      const cure = "Check which operand has the other layout, or belongs to another layer.";
      const { linear, matmul, rmsNorm, crossEntropy } = device.ops;
      const sig = "(x[N..,I] w[O,I] bias?[O] -> y[N..,O])";
      expect(messageOf(() => linear(x, w))).toBe(
        `[T-SHAPE] linear: w is f32 [512, 768], but x[N=32, I=640] needs w[O, I=640] ${sig}. ${cure}`,
      );
      expect(messageOf(() => linear(deep, w))).toContain("but x[N=[2, 3], I=640] needs w[O, I=640]");
      expect(messageOf(() => linear(scalar, w))).toContain("linear: x is f32 [], wanted x[N.., I] (");
      expect(messageOf(() => matmul(x, w))).toMatch(
        /b is f32 \[512, 768\], but a\[.*=640\] needs b\[.*=640, /,
      );
      expect(messageOf(() => rmsNorm(deep, scalar))).toContain("but x[N=[2, 3], C=640] needs gain[C=640]");
      const [tall, turned] = [
        [640, 1],
        [3, 2, 640],
      ].map((s) => device.empty(s));
      expect(messageOf(() => rmsNorm(x, tall))).toContain(
        "gain is f32 [640, 1], but x[N=32, C=640] needs gain[C=640]",
      );
      expect(messageOf(() => device.ops.siluMul(deep, turned))).toMatch(
        /is f32 \[3, 2, 640\], but \w+\[N=\[2, 3, 640\]\] needs \w+\[N=\[2, 3, 640\]\]/,
      );
      const targets = device.empty([3], { dtype: "i32" });
      expect(messageOf(() => crossEntropy(x, targets))).toMatch(/needs targets\[N=32\]/);
    });
  });

  it("that a row's check refuses is shown with its extents, as are the others", () => {
    const device = new MetaDevice();
    device.scope(() => {
      const [x, angles] = [
        [2, 1, 5, 3, 8],
        [5, 3],
      ].map((s) => device.empty(s));
      expect(messageOf(() => device.ops.rope(x, angles, angles))).toMatch(
        /\[T-SHAPE\] rope: .* \(x.* -> .*; given x\[B=\[2, 1\], T=5, H=3, D=8\] cos\[T=5, P=3\] sin\[T=5, P=3\]\)\.$/,
      );
    });
  });

  it("of another device of the same kind is refused too", () => {
    const [one, other] = [new CpuDevice(), new CpuDevice()];
    using x = one.tensor([1], [1]);
    using y = other.tensor([1], [1]);
    using elsewhere = new MetaDevice().empty([1]);
    expect(messageOf(() => one.ops.add(x, y))).toMatch(/\[T-DEVICE\] add: b .* is on another cpu device/);
    expect(messageOf(() => one.ops.add(x, elsewhere))).toContain("is on meta, and this is cpu");
  });
});

describe("an op in place", () => {
  it("is refused where another operand is in the memory that it updates", async () => {
    const device = new CpuDevice();
    using x = device.tensor([1, 2], [1, 2, 1]);
    using view = device.ops.reshape(x, { shape: [1, 2, 1] });
    using other = device.tensor([1, 2], [1, 2, 1]);
    for (const use of [
      () => device.ops.accumulate(x, x),
      () => device.ops.cacheWrite(x, view),
      () => device.ops.sgd(other, x, view),
      () => device.ops.sgd(x, x, other),
    ]) {
      expect(messageOf(use)).toMatch(
        /^\[T-VALUE\] \w+: \w+ is updated in place, and \w+ is in the same memory/,
      );
    }
    expect([...(await x.read()), x.version]).toEqual([1, 2, 0]);
  });
});

it.each(["i32", "u8", "f64"])("a cast to %s is refused: floats alone are computed", (to) => {
  const device = new MetaDevice();
  using x = device.zeros([2]);
  expect(messageOf(() => device.ops.cast(x, { to: to as DType }))).toContain(`[T-DTYPE] cast: to is ${to}`);
});

it("a tensor of another device is neither written, nor kept, nor freed by this one", async () => {
  const [one, other] = await Promise.all([openNodeWasm({ threads: 1 }), openNodeWasm({ threads: 1 })]);
  try {
    // Equal addresses in two memories.
    using x = one.tensor([1, 2], [2]);
    using y = other.tensor([3, 4], [2]);
    for (const misuse of [
      () => other.assign(x, [9, 9]),
      () => other.retain(x),
      () => other.keep(x, "weights"),
      () => other.categorize(x, "weights"),
    ]) {
      expect(messageOf(misuse)).toMatch(
        /^\[T-DEVICE\] (assign|retain|keep|categorize): tensor #\d+ .* is on another wasm device/,
      );
    }
    expect([...(await x.read()), ...(await y.read())]).toEqual([1, 2, 3, 4]);
    expect(x.category).toBe("workspace");
  } finally {
    one.dispose();
    other.dispose();
  }
});

it.each([undefined, null, 5, [1, 2]])(
  "%s is refused by name where a device wants a tensor",
  async (value) => {
    const device = new CpuDevice();
    const tensor = value as unknown as Tensor;
    for (const [name, use] of Object.entries({
      assign: () => device.assign(tensor, [1]),
      retain: () => device.retain(tensor),
      keep: () => device.keep(tensor),
      categorize: () => device.categorize(tensor, "weights"),
    })) {
      expect(messageOf(use)).toBe(`[T-VALUE] ${name} was given ${value}, wanted a tensor.`);
    }
    expect(messageOf(() => new ParamStore(device, "adapter").add("w", tensor))).toContain(
      `was given ${value}`,
    );
    await expect(device.read(tensor)).rejects.toThrow("[T-VALUE] read was given");
    const freed = device.zeros([1]);
    freed.dispose();
    await expect(device.read(freed)).rejects.toThrow("[T-USE-AFTER-FREE] read was given tensor");
  },
);

describe("a new tensor", () => {
  it("of zeros has every type that the device stores, whatever was there before", async () => {
    const device = await openNodeWasm({ threads: 1 });
    try {
      const shapes = fc.array(fc.nat(5), { maxLength: 3 });
      const dtypes = fc.constantFrom<DType>("f32", "f16", "i32", "u32", "u8");
      const isZero = async (shape: Shape, dtype: DType) => {
        device.tensor(new Float32Array(64).fill(7), [64]).dispose();
        using zeros = device.zeros(shape, { dtype });
        const values = await zeros.read();
        return zeros.dtype === dtype && values.length === zeros.size && values.every((value) => value === 0);
      };
      await fc.assert(fc.asyncProperty(shapes, dtypes, isZero), propertyRuns(50));
    } finally {
      device.dispose();
    }
  });

  it.each(["f33", "float32", "toString"])(
    "of the type %s is refused by name, and nothing is counted",
    (name) => {
      for (const device of [new CpuDevice(), new MetaDevice()]) {
        for (const make of [
          () => device.empty([2], { dtype: name as DType }),
          () => device.zeros([2], { dtype: name as DType }),
        ]) {
          expect(messageOf(make)).toContain(
            `[T-DTYPE] there is no dtype "${name}", only f32, f16, i32, u32, u8.`,
          );
        }
        expect(device.memory.liveBytes).toBe(0);
      }
    },
  );

  it("of a shape or a category that is none is refused by name", () => {
    const device = new CpuDevice();
    expect(messageOf(() => device.zeros(3 as unknown as Shape))).toContain(
      "[T-SHAPE] zeros: the shape is 3, wanted an array",
    );
    expect(messageOf(() => device.empty(undefined as unknown as Shape))).toContain("the shape is undefined");
    expect(messageOf(() => device.zeros([2], { category: "wieghts" as "weights" }))).toContain(
      '[T-NAME] there is no category "wieghts"',
    );
    using x = device.zeros([2]);
    expect(messageOf(() => device.categorize(x, "wieghts" as "weights"))).toContain("T-NAME");
    expect(device.memory.live.workspace).toBe(16);
    expect(device.memory.liveBytes).toBe(16);
    const keep = () => device.scope(() => device.keep(device.zeros([2]), "wieghts" as "weights"));
    expect(messageOf(keep)).toContain("T-NAME");
    expect(device.memory.liveBytes).toBe(16);
  });

  it("that a listener to allocations refuses leaves no memory behind", () => {
    const device = new CpuDevice();
    device.memory.onReserve = () => {
      throw new Error("no more");
    };
    expect(() => device.empty([2])).toThrow("no more");
    expect(device.memory.liveBytes).toBe(0);
  });

  it("of a case whose next operand is wrong leaves no memory behind", async () => {
    const device = new CpuDevice();
    const [x, y] = [[2], [3]].map((shape, i) => ({
      name: "ab"[i],
      shape,
      dtype: "f32" as const,
      values: [1, 2],
    }));
    await expect(runCase(device, "add", { inputs: [x, y], attrs: {} })).rejects.toThrow("T-SHAPE");
    expect(device.memory.liveBytes).toBe(0);
  });

  it.each([
    ["null", null, "the values are null, wanted an array of numbers"],
    ["undefined", undefined, "the values are undefined"],
    ["a string", "12", 'the values are "12"'],
    ["a number", 2, "the values are 2"],
    ["an object", {}, "the values are an object"],
    ["null made by a function", () => null, "the values are null"],
    ["an array with a hole", [1, undefined], "value 1 is undefined, wanted a number"],
    ["an array with null", [null, 1], "value 0 is null"],
    ["an array of strings", ["1", "2"], 'value 0 is "1"'],
    ["an array of booleans", [true, false], "value 0 is true"],
    ["an array of bigints", [1n, 2n], "value 0 is 1"],
    ["a typed array of bigints", new BigInt64Array(2), "value 0 is 0"],
    ["an array of rows", [[1], [2]], "value 0 is an array, wanted a number. Rows follow one another"],
  ])("whose values are %s is refused by name", (_, values, message) => {
    for (const device of [new CpuDevice(), new MetaDevice()]) {
      if (typeof values === "function" && !device.holdsValues) continue;
      const make = () => device.tensor(values as unknown as number[], [2], { label: "ids" });
      expect(messageOf(make)).toContain(`[T-VALUE] ids: ${message}`);
      using x = device.zeros([2]);
      if (typeof values === "function") continue;
      expect(messageOf(() => device.assign(x, values as unknown as number[]))).toContain(
        `[T-VALUE] assign: ${message}`,
      );
    }
  });

  it.each([
    ["u8", [0, 255], [-1, 256, 1.7, Number.NaN, Number.POSITIVE_INFINITY]],
    ["i32", [-(2 ** 31), 2 ** 31 - 1], [-(2 ** 31) - 1, 2 ** 31, 0.5, Number.NaN, Number.NEGATIVE_INFINITY]],
    ["u32", [0, 2 ** 32 - 1], [-1, 2 ** 32, 0.5, Number.NaN]],
  ] as const)("of %s has only values that it holds", async (dtype, held, others) => {
    for (const device of [new CpuDevice(), await openNodeWasm({ threads: 1 })]) {
      using x = device.tensor(held, [2], { dtype });
      for (const value of others) {
        const message = new RegExp(`T-VALUE.*value 1 is ${value}, and ${dtype} holds whole numbers from`);
        expect(() => device.tensor([1, value], [2], { dtype, label: "ids" })).toThrow(message);
        expect(() => device.assign(x, new Float64Array([1, value]))).toThrow(message);
      }
      expect([...(await x.read())]).toEqual(held);
      device.assign(x, new Float32Array([-0, 3]));
      expect([...(await x.read())]).toEqual([0, 3]);
    }
  });

  it("whose values cannot be written leaves no memory behind", () => {
    const device = new CpuDevice();
    let reads = 0;
    const values = {
      length: 1,
      get 0(): number {
        if (reads++ > 0) throw new TypeError("gone");
        return 1;
      },
    };
    expect(() => device.tensor(values, [1])).toThrow("gone");
    expect(device.memory.liveCount).toBe(0);
  });

  it("has a shape of its own, which does not follow the caller's array", () => {
    const device = new MetaDevice();
    const shape = [2, 3];
    device.scope(() => {
      const x = device.zeros(shape);
      const view = device.ops.reshape(x, { shape });
      const spread = device.ops.broadcast(device.zeros([]), { shape });
      shape[0] = 5;
      for (const tensor of [x, view, spread]) expect(tensor.shape).toEqual([2, 3]);
    });
  });

  it.each([
    [-2, -3],
    [1.5, 4],
    [6, undefined],
  ])("is no view of shape [%s, %s]", (...shape) => {
    const device = new MetaDevice();
    using x = device.zeros([6]);
    expect(messageOf(() => device.ops.reshape(x, { shape: shape as number[] }))).toContain(
      "[T-SHAPE] reshape: ",
    );
    expect(device.memory.liveCount).toBe(1);
  });
});

it("an error has its code, its text, and both in its message", () => {
  const error = new SidenetError("T-SHAPE", "no such axis.", { cause: "x" });
  expect([error.code, error.text, error.message]).toEqual([
    "T-SHAPE",
    "no such axis.",
    "[T-SHAPE] no such axis.",
  ]);
  const long = new SidenetError("L-JSON", `${"a".repeat(5000)}. Is it complete?`);
  expect(long.text.length).toBeLessThan(1600);
  expect(long.message).toBe(`[L-JSON] ${long.text}`);
  expect(long.text).toMatch(/Is it complete\?$/);
});

it("a device of a name that is none is refused by name", async () => {
  await expect(openDevice("gpu" as "webgpu")).rejects.toThrow(
    '[T-NAME] there is no device "gpu", only auto, webgpu, wasm, cpu, meta.',
  );
});

describe("a plain value from outside", () => {
  it.each([undefined, null, "7", 1.5, -1, 2 ** 32])("is refused as a seed: %s", (seed) => {
    expect(messageOf(() => new Random(seed as number))).toBe(
      `[T-VALUE] Random: seed is ${seed}, wanted a whole number from 0 to 2^32 - 1.`,
    );
    const message = messageOf(() => new Random(1, seed as number));
    if (seed === undefined)
      expect(message).toBe("no error"); // the default
    else expect(message).toContain(`Random: stream is ${seed}`);
  });

  it.each([0, -1, 1.5, Number.NaN, 2 ** 32 + 1])("is refused as a limit of random integers: %s", (limit) => {
    expect(messageOf(() => new Random(1).below(limit))).toBe(
      `[T-VALUE] Random: below(${limit}) wants a whole number from 1 to 2^32.`,
    );
  });

  it("is refused as a precision that there is not", () => {
    expect(messageOf(() => new CpuDevice({ precision: "double" as "f64" }))).toContain(
      '[T-VALUE] there is no precision "double"',
    );
  });
});

describe("a ParamStore that was disposed", () => {
  it("says so to whoever asks it for tensors, and may be disposed again", () => {
    const device = new CpuDevice();
    const store = new ParamStore(device, "adapter");
    store.add("w", device.zeros([2]));
    expect([store.disposed, store.count]).toEqual([false, 2]);
    store.dispose();
    store.dispose();
    expect(store.disposed).toBe(true);
    using x = device.zeros([1]);
    for (const use of [
      () => store.get("w"),
      () => store.add("x", x),
      () => store.has("w"),
      () => store.names(),
      () => store.count,
      () => [...store],
    ]) {
      expect(messageOf(use)).toMatch(
        /^\[T-USE-AFTER-FREE\] .* a ParamStore of "adapter" tensors that was disposed/,
      );
    }
  });
});
