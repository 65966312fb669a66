/** `customGradient`: a function with a gradient of its own, on the tape as any op. */
import { CpuDevice, type Device, type Ops, SidenetError, type Tensor, TestRandom } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type CustomGradient,
  checkpoint,
  customGradient,
  disposeGradients,
  gradcheck,
  Tape,
} from "../src/index.ts";
import { counting, expectCode, expectNoLeaks, propertyRuns, relativeError } from "./support.ts";

/** y = max(x, 0)², which keeps 2 max(x, 0) and neither x nor y. */
const SQUARED_RELU: CustomGradient = {
  name: "squaredRelu",
  forward: (ops, x) => {
    const positive = ops.relu(x);
    return { y: ops.mul(positive, positive), saves: [ops.scale(positive, { factor: 2 })] };
  },
  pull: (ops, dy, [slope]) => [ops.mul(dy, slope)],
};

/** y = x wᵀ, whose pull makes what is wanted and counts it. */
const countingLinear = (made: string[]): CustomGradient => ({
  name: "countingLinear",
  forward: (ops, x, w) => ({ y: ops.linear(x, w), saves: [x, w] }),
  pull: (ops, dy, [x, w], [ofX, ofW]) => {
    if (ofX) made.push("x");
    if (ofW) made.push("w");
    return [ofX ? ops.matmul(dy, w) : null, ofW ? ops.matmulTN(dy, x) : null];
  },
});

/** Gradients of Σ (u ∘ y) for the leaves, read to the host; everything is freed. */
async function gradientsOf(
  device: Device,
  leaves: readonly Tensor[],
  body: (tape: Tape) => Tensor,
  formats = {},
): Promise<{ values: Float64Array[]; savedBytes: number }> {
  using tape = new Tape(device, leaves, { formats });
  using y = device.scope(() => body(tape));
  using u = device.tensor(new TestRandom(5).normals(y.size), y.shape, { dtype: y.dtype });
  const { savedBytes } = tape;
  const gradients = tape.backward(y, u);
  const values = await Promise.all(
    leaves.map(async (leaf) => Float64Array.from(await gradients.get(leaf)!.read())),
  );
  disposeGradients(gradients);
  expect(device.memory.live.saved).toBe(0);
  return { values, savedBytes };
}

function freed(tensor: Tensor): Tensor {
  tensor.dispose();
  return tensor;
}

describe("customGradient", () => {
  it("has right gradients, with ops of a device, a tape, and a checkpoint", async () => {
    const values = new TestRandom(1).awayFromZero(12, 0.1);
    const inputs = [{ shape: [3, 4], values }];
    expect((await gradcheck((ops, x) => customGradient(ops, SQUARED_RELU, [x]), inputs)).worst).toBeLessThan(
      1e-8,
    );
    const twice = (ops: Ops, x: Tensor) =>
      customGradient(ops, SQUARED_RELU, [customGradient(ops, SQUARED_RELU, [x])]);
    expect((await gradcheck((ops, x) => checkpoint(ops, twice, [x]), inputs)).worst).toBeLessThan(1e-8);
  });

  it("is what composing recorded ops is, for every set of tracked inputs and values used twice", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.nat(),
        fc.constantFrom([true, true], [true, false], [false, true]),
        async (seed, tracked) => {
          const device = new CpuDevice({ precision: "f64" });
          const pick = new TestRandom(seed);
          const inputs = [device.tensor(pick.normals(12), [3, 4]), device.tensor(pick.normals(16), [4, 4])];
          const leaves = inputs.filter((_, i) => tracked[i]);
          const made: string[] = [];
          const twice = (linear: (x: Tensor, w: Tensor) => Tensor) =>
            linear(linear(inputs[0], inputs[1]), inputs[1]);
          const rule = countingLinear(made);
          const custom = await gradientsOf(device, leaves, (tape) =>
            twice((x, w) => customGradient(tape, rule, [x, w])),
          );
          const plain = await gradientsOf(device, leaves, (tape) => twice((x, w) => tape.linear(x, w)));
          for (const [i, { length }] of plain.values.entries()) {
            expect(length).toBe(leaves[i].size);
            expect(relativeError(custom.values[i], plain.values[i])).toBeLessThan(1e-14);
          }
          // The second call's x is tracked in any case; the first call's inputs are the leaves.
          expect(made.filter((name) => name === "w").length).toBe(tracked[1] ? 2 : 0);
          expect(made.filter((name) => name === "x").length).toBe(tracked[0] ? 2 : 1);
          for (const input of inputs) input.dispose();
          expectNoLeaks(device);
        },
      ),
      propertyRuns(30),
    );
  });

  it("keeps what it names and nothing else, in the tape's format", async () => {
    const device = new CpuDevice();
    using x = counting(device, [4, 4]);
    const rule: CustomGradient = {
      name: "square",
      forward: (ops, a) => ({ y: ops.mul(a, a), saves: [a] }),
      pull: (ops, dy, [a]) => [ops.scale(ops.mul(dy, a), { factor: 2 })],
    };
    const chain = (tape: Tape) =>
      tape.scale(customGradient(tape, rule, [tape.scale(x, { factor: 2 })]), { factor: 3 });
    const full = await gradientsOf(device, [x], chain);
    const half = await gradientsOf(device, [x], chain, { saved: "f16" });
    expect(full.savedBytes).toBe(64);
    expect(half.savedBytes).toBe(32);
    expect(half.values).toEqual(full.values); // small whole numbers: exact in f16
    const relu = await gradientsOf(device, [x], (tape) => customGradient(tape, SQUARED_RELU, [x]));
    expect(relu.savedBytes).toBe(64);
    expect(device.memory.liveCount).toBe(1);
  });

  it("takes an input that is returned, dy that is returned, one tensor twice, and gradients made by hand", async () => {
    const device = new CpuDevice();
    using x = device.tensor([1, 2], [2]);
    const identity: CustomGradient = { name: "identity", forward: (_ops, a) => a, pull: (_ops, dy) => [dy] };
    const plus: CustomGradient = {
      name: "plus",
      forward: (ops, a, b) => ops.add(a, b),
      pull: (_, dy) => [dy, dy],
    };
    const byHand: CustomGradient = {
      name: "byHand",
      forward: (ops, a) => ops.scale(a, { factor: 3 }),
      pull: (_ops, { shape }) => [device.tensor([3, 3], shape)],
    };
    using ones = device.tensor([1, 1], [2]);
    for (const [body, wanted] of [
      [(tape: Tape) => customGradient(tape, identity, [x]), [1, 1]],
      [(tape: Tape) => customGradient(tape, plus, [x, x]), [2, 2]],
      [
        (tape: Tape) => tape.add(customGradient(tape, byHand, [x]), customGradient(tape, byHand, [x])),
        [6, 6],
      ],
      [
        (tape: Tape) => customGradient(tape, plus, [tape.add(x, x), customGradient(tape, identity, [x])]),
        [3, 3],
      ],
    ] as const) {
      using tape = new Tape(device, [x]);
      using y = device.scope(() => body(tape));
      const gradients = tape.backward(y, ones);
      expect([...(await gradients.get(x)!.read())]).toEqual(wanted);
      expect([...(await ones.read())]).toEqual([1, 1]);
      disposeGradients(gradients);
    }
    expect(device.memory.liveCount).toBe(2);
  });

  it("takes an input through a closure as it takes the argument", async () => {
    const device = new CpuDevice();
    using x = device.tensor([1, 2], [2]);
    using w = device.tensor([3, 5], [2]);
    const rule = (product: (ops: Ops, a: Tensor) => Tensor): CustomGradient => ({
      name: "product",
      forward: (ops, a) => ({ y: product(ops, a), saves: [a, w] }),
      pull: (ops, dy, [a, b]) => [ops.mul(dy, b), ops.mul(dy, a)],
    });
    const { values } = await gradientsOf(device, [x, w], (tape) =>
      tape.sum(
        customGradient(
          tape,
          rule((ops, a) => ops.mul(a, w)),
          [x, w],
        ),
      ),
    );
    const u = new TestRandom(5).normal();
    expect(relativeError(values[0], Float64Array.of(3 * u, 5 * u))).toBeLessThan(1e-6);
    expect(relativeError(values[1], Float64Array.of(u, 2 * u))).toBeLessThan(1e-6);
    device.scope(() => {
      using tape = new Tape(device, [x]);
      const inPlace = rule((ops, a) => {
        ops.fill(w, { value: 0 });
        return ops.mul(a, w);
      });
      expectCode("A-IN-PLACE", () => customGradient(tape, inPlace, [x, w]), "an input of a function");
      const returned: CustomGradient = { ...SQUARED_RELU, forward: () => w };
      expect(tape.isTracked(customGradient(tape, returned, [x, w]))).toBe(true);
      expect(tape.isTracked(w), "the result is a tensor of its own").toBe(false);
      const h = tape.scale(x, { factor: 2 });
      expectCode("A-CHECKPOINT", () => checkpoint(tape, (ops) => ops.silu(h), [h]), "through a closure");
    });
  });

  it("takes gradients of two inputs that share their memory", async () => {
    const device = new CpuDevice();
    const sum = (pull: CustomGradient["pull"]): CustomGradient => ({
      name: "sum",
      forward: (ops, a, b) => ops.add(a, ops.reshape(b, { shape: a.shape })),
      pull,
    });
    const same = sum((ops, dy) => {
      const gradient = ops.scale(dy, { factor: 1 });
      return [gradient, gradient];
    });
    const view = sum((ops, dy) => {
      const gradient = ops.scale(dy, { factor: 1 });
      return [gradient, ops.reshape(gradient, { shape: [2, 1] })];
    });
    for (const [rule, shape] of [
      [same, [2]],
      [view, [2, 1]],
    ] as const) {
      using x = device.tensor([1, 2], [2]);
      // The gradient of a has a second contribution, which must not reach that of b.
      const { values } = await gradientsOf(device, [x], (tape) => {
        const a = tape.scale(x, { factor: 2 });
        const b = tape.reshape(tape.scale(x, { factor: 3 }), { shape });
        const other = tape.scale(a, { factor: 10 });
        return tape.sum(tape.add(customGradient(tape, rule, [a, b]), other));
      });
      const u = new TestRandom(5).normal();
      expect(relativeError(values[0], Float64Array.of(25 * u, 25 * u))).toBeLessThan(1e-6);
      // Leaves have gradients that can be accumulated independently.
      using p = device.tensor([1, 2], [2]);
      using q = device.tensor([1, 2], shape);
      using tape = new Tape(device, [p, q]);
      using loss = device.scope(() => tape.sum(customGradient(tape, rule, [p, q])));
      const gradients = tape.backward(loss);
      expect(gradients.get(p)!.memoryKey).not.toBe(gradients.get(q)!.memoryKey);
      disposeGradients(gradients);
    }
    expectNoLeaks(device);
  });

  it("frees a gradient made by hand as the backward pass consumes it", () => {
    const device = new CpuDevice();
    using x = counting(device, [64, 64]);
    using tape = new Tape(device, [x]);
    const byHand: CustomGradient = {
      name: "byHand",
      forward: (ops, a) => ops.scale(a, { factor: 1 }),
      pull: (_ops, { shape }) => [device.zeros(shape)],
    };
    using loss = device.scope(() => {
      let y: Tensor = x;
      for (let i = 0; i < 20; i++) y = customGradient(tape, byHand, [y]);
      return tape.sum(y);
    });
    device.memory.resetPeak();
    disposeGradients(tape.backward(loss));
    expect(device.memory.peak().peakBytes).toBeLessThan(5 * x.size * 4);
  });

  it("is a record under its name, and none where nothing is tracked", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const [x, w] = [counting(device, [2, 2]), counting(device, [2, 2])];
      using tape = new Tape(device, [w]);
      const rule = countingLinear([]);
      expect(tape.isTracked(customGradient(tape, SQUARED_RELU, [x]))).toBe(false);
      expect(tape.isTracked(customGradient(tape, rule, [x, w]))).toBe(true);
      expect(tape.records).toMatchObject([{ op: "custom countingLinear", tracked: ["1"] }]);
    });
    expectNoLeaks(device);
  });

  it("refuses what cannot be right, and leaves nothing behind", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const [x, w] = [counting(device, [2, 2]), counting(device, [2, 2])];
      using tape = new Tape(device, [x, w]);
      const live = device.memory.liveBytes;
      const forward = (body: (ops: Ops, a: Tensor) => unknown) => () =>
        customGradient(tape, { ...SQUARED_RELU, forward: body as CustomGradient["forward"] }, [x]);
      expectCode(
        "A-CUSTOM",
        forward((ops, a) => [ops.silu(a)]),
        "squaredRelu: its function returned an array of 1",
      );
      expectCode(
        "A-CUSTOM",
        forward(() => undefined),
        "undefined",
      );
      expectCode(
        "A-CUSTOM",
        forward((ops, a) => ops.argmax(a)),
        "i32",
      );
      expectCode(
        "A-CUSTOM",
        forward((ops, a) => ops.linear(a, w)),
        "Add it to the inputs",
      );
      expectCode(
        "A-IN-PLACE",
        forward((ops, a) => ops.fill(a, { value: 0 })),
      );
      expectCode("A-CUSTOM", () => customGradient(device.ops, SQUARED_RELU, []), "no inputs");
      expect(tape.records).toEqual([]);
      expect(device.memory.liveBytes).toBe(live);
      expectCode(
        "A-CUSTOM",
        forward(() => tape.silu(x)),
        "used the tape",
      );
    });
    for (const [pull, code, text] of [
      [() => [], "A-CUSTOM", "no gradient of input 0"],
      [() => undefined as unknown as Tensor[], "A-CUSTOM", "no gradient of input 0"],
      [(ops: Ops, dy: Tensor) => [freed(ops.neg(dy)), dy], "A-CUSTOM", "freed the gradient of input 0"],
      [(ops: Ops, dy: Tensor) => [ops.sum(dy), dy], "A-RULE", "[]"],
      [(_: Ops, dy: Tensor) => [dy, device.zeros([3])], "A-RULE", "[3]"],
      [
        () => {
          throw new SidenetError("TEST", "in pull");
        },
        "TEST",
        "in pull",
      ],
    ] as const) {
      device.scope(() => {
        const [x, w] = [counting(device, [2, 2]), counting(device, [2, 2])];
        using tape = new Tape(device, [x, w]);
        const loss = device.scope(() =>
          tape.sum(customGradient(tape, { ...countingLinear([]), pull }, [x, w])),
        );
        expectCode(code, () => tape.backward(loss), text);
      });
      expectNoLeaks(device);
    }
    expectNoLeaks(device);
  });

  it.runIf(process.env.SIDENET_DEVICE !== "cpu")("runs kernels of the caller's on WebGPU", async () => {
    const gpu = await openNodeWebGpu({ poison: true });
    try {
      const kernel = (body: string) => `
        @group(0) @binding(0) var<storage, read> a: array<f32>;
        @group(0) @binding(1) var<storage, read> b: array<f32>;
        @group(0) @binding(2) var<storage, read_write> y: array<f32>;
        @compute @workgroup_size(64)
        fn main(@builtin(global_invocation_id) id: vec3<u32>) {
          let i = id.x;
          if (i < arrayLength(&y)) { y[i] = ${body}; }
        }`;
      gpu.addKernel("cube", kernel("a[i] * a[i] * b[i]"));
      gpu.addKernel("cube-backward", kernel("3.0 * a[i] * a[i] * b[i]"));
      const run = (name: "cube" | "cube-backward", a: Tensor, b: Tensor) => {
        const y = gpu.empty(a.shape);
        gpu.dispatch(`${name}/main`, { bind: { a, b, y }, params: {}, grid: Math.ceil(y.size / 64) });
        return y;
      };
      const rule: CustomGradient = {
        name: "cube",
        forward: (_ops, x) => ({ y: run("cube", x, x), saves: [x] }),
        pull: (_ops, dy, [x]) => [run("cube-backward", x, dy)],
      };
      using x = gpu.tensor([1, 2, -3, 0.5], [4]);
      using tape = new Tape(gpu, [x]);
      using loss = gpu.scope(() => tape.sum(customGradient(tape, rule, [x])));
      const gradients = tape.backward(loss);
      expect(await loss.item()).toBeCloseTo(1 + 8 - 27 + 0.125, 5);
      expect([...(await gradients.get(x)!.read())]).toEqual([3, 12, 27, 0.75]);
      disposeGradients(gradients);
      expect(gpu.memory.liveCount).toBe(2);
    } finally {
      gpu.dispose();
    }
  });
});
