import { CpuDevice, type Ops, type Tensor } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { disposeGradients, gradcheck, Tape } from "../src/index.ts";
import { counting, expectNoLeaks, propertyRuns } from "./support.ts";

const double = () => new CpuDevice({ precision: "f64" });
const values = async (tensor: Tensor | undefined): Promise<number[]> => [...(await tensor!.read())];

/** Runs `build` on one leaf [1, 2, 3, ...] and reads the gradient of the sum of its result. */
async function gradientOf(build: (ops: Ops, x: Tensor) => Tensor, shape = [2, 2]): Promise<number[]> {
  const device = double();
  const x = counting(device, shape);
  using tape = new Tape(device, [x]);
  const gradient = device.scope(() => tape.backward(tape.sum(build(tape, x))).get(x)!);
  const result = await values(gradient);
  gradient.dispose();
  x.dispose();
  expectNoLeaks(device);
  return result;
}

describe("gradients of a value that is used more than once are summed", () => {
  it("twice by one op", async () => {
    expect(await gradientOf((ops, x) => ops.mul(x, x))).toEqual([2, 4, 6, 8]);
    expect(await gradientOf((ops, x) => ops.add(x, x))).toEqual([2, 2, 2, 2]);
  });

  it("once by each of several ops", async () => {
    expect(
      await gradientOf((ops, x) => ops.add(x, ops.add(ops.mul(x, x), ops.scale(x, { factor: 3 })))),
    ).toEqual([6, 8, 10, 12]);
  });

  it("through views and residual connections", async () => {
    const diamond = (ops: Ops, x: Tensor) => {
      const flat = ops.reshape(x, { shape: [4] });
      const square = ops.reshape(ops.mul(flat, flat), { shape: [2, 2] });
      return ops.add(ops.add(x, square), ops.add(x, x));
    };
    expect(await gradientOf(diamond)).toEqual([5, 7, 9, 11]);
  });

  it("without adding in place to a gradient that another value shares", async () => {
    // Backwards, add gives the same dy to both sides; then one side gets more, and the other must not see it.
    const shared = (view: boolean) => (ops: Ops, x: Tensor) => {
      const a = ops.scale(x, { factor: 2 });
      const b = ops.mul(x, x);
      const more = ops.mul(a, a);
      const same = view ? ops.reshape(a, { shape: [2, 2] }) : a;
      return ops.add(ops.add(same, b), more);
    };
    for (const view of [false, true]) expect(await gradientOf(shared(view))).toEqual([12, 22, 32, 42]);
    const both = (ops: Ops, x: Tensor) => {
      const a = ops.scale(x, { factor: 2 });
      const b = ops.mul(x, x);
      return ops.add(ops.add(a, b), ops.add(a, b)); // a and b each sum two shared gradients
    };
    expect(await gradientOf(both)).toEqual([8, 12, 16, 20]);
  });

  it("in random graphs, as finite differences say", async () => {
    const step = fc.record({ op: fc.integer({ min: 0, max: 7 }), a: fc.nat(), b: fc.nat() });
    const property = fc.asyncProperty(
      fc.array(step, { minLength: 1, maxLength: 14 }),
      fc.integer(),
      async (steps, seed) => {
        const build = (ops: Ops, ...leaves: Tensor[]): Tensor => {
          const made = [...leaves];
          for (const { op, a, b } of steps) {
            const x = made[a % made.length];
            const y = made[b % made.length];
            const results: (() => Tensor)[] = [
              () => ops.add(x, y),
              () => ops.mul(x, ops.sigmoid(y)),
              () => ops.siluMul(x, ops.sigmoid(y)),
              () => ops.scale(ops.matmul(x, y), { factor: 0.3 }),
              () => ops.reshape(ops.reshape(x, { shape: [9] }), { shape: [3, 3] }),
              () =>
                ops.linear(
                  x,
                  ops.sigmoid(y),
                  ops.slice(ops.reshape(x, { shape: [9] }), { axis: 0, start: 3, count: 3 }),
                ),
              () =>
                ops.scaleBy(
                  x,
                  ops.reshape(ops.slice(ops.sum(y, { axis: 0 }), { axis: 0, start: 1, count: 1 }), {
                    shape: [],
                  }),
                ),
              () => ops.rmsNorm(ops.add(x, leaves[0]), ops.sum(ops.sigmoid(y), { axis: 1 }), { eps: 0.1 }),
            ];
            made.push(results[op]());
          }
          // The other values may be dead ends, or reached by one path only: their gradients pass through as they are.
          return [made[made.length - 1], ...leaves].reduce((total, each) => ops.add(total, each));
        };
        const leaf = (name: string, at: number) => ({
          name,
          shape: [3, 3],
          values: Array.from({ length: 9 }, (_, i) => Math.sin(seed + 10 * at + i)),
        });
        await gradcheck(build, [leaf("x", 0), leaf("y", 1)], { seed, tolerance: 1e-5 });
      },
    );
    await fc.assert(property, propertyRuns(60));
  });
});

describe("what is tracked", () => {
  it("is a leaf or computed from one through the tape, and nothing else is recorded", () => {
    const device = double();
    device.scope(() => {
      const [x, w, frozen] = [counting(device, [2, 2]), counting(device, [2, 2]), counting(device, [2, 2])];
      using tape = new Tape(device, [["w", w]]);
      const h = tape.silu(tape.linear(x, frozen));
      expect(tape.isTracked(h)).toBe(false);
      expect(tape.records).toEqual([]);
      const y = tape.linear(h, w);
      expect(tape.isTracked(y)).toBe(true);
      expect(tape.isTracked(device.ops.silu(y)), "the device's ops record nothing").toBe(false);
      using handle = device.retain(y);
      expect(tape.isTracked(handle), "another handle is another value").toBe(false);
      tape.linear(y, frozen);
      expect(tape.records).toEqual([
        { op: "linear", tracked: ["w"], saved: [{ name: "x", sizeBytes: 16 }] },
        { op: "linear", tracked: ["x"], saved: [{ name: "w", sizeBytes: 16 }] },
      ]);
      tape.argmax(y);
      expect(tape.records.length, "an integer output carries no gradient").toBe(2);
    });
  });

  it("takes a ParamStore's pairs and plain tensors, each once", () => {
    const device = double();
    device.scope(() => {
      const [p, q] = [counting(device, [2]), counting(device, [2])];
      using tape = new Tape(device, [p, ["q", q], p]);
      const gradients = tape.backward(tape.sum(tape.mul(p, q)));
      expect([...gradients.keys()]).toEqual([p, q]);
    });
  });

  it("does not depend on handles that were freed", async () => {
    const device = double();
    using x = counting(device, [2]);
    using tape = new Tape(device, [x]);
    using loss = device.scope(() => {
      const square = tape.mul(x, x);
      const cube = tape.mul(square, x);
      square.dispose();
      return tape.sum(cube);
    });
    using gradient = tape.backward(loss).get(x)!;
    expect(await values(gradient)).toEqual([3, 12]);
  });
});

describe("attributes", () => {
  it("reach the backward op: another ignoreIndex", async () => {
    const logits = {
      name: "logits",
      shape: [3, 4],
      values: Array.from({ length: 12 }, (_, i) => Math.sin(i)),
    };
    const targets = { shape: [3], values: [2, 0, 1], dtype: "i32" as const };
    const attrs = { ignoreIndex: 0 };
    await gradcheck((ops, l, t) => ops.crossEntropy(l, t, attrs), [logits, targets]);
    const [h, w] = [
      { ...logits, name: "h" },
      { ...logits, name: "w" },
    ];
    await gradcheck((ops, a, b, t) => ops.lmHeadLoss(a, b, t, attrs), [h, w, targets]);
  });
});

describe("gradients that backward returns", () => {
  it("have memory of their own, though rules pass dy through", async () => {
    const device = double();
    using p = counting(device, [3]);
    using q = counting(device, [3]);
    using upstream = device.tensor([1, 2, 3], [3]);
    using tape = new Tape(device, [p, q]);
    const gradients = device.scope(() => tape.backward(tape.add(p, q), upstream));
    device.ops.accumulate(gradients.get(p)!, p);
    expect(await values(gradients.get(p))).toEqual([2, 4, 6]);
    expect(await values(gradients.get(q))).toEqual([1, 2, 3]);
    expect(await values(upstream)).toEqual([1, 2, 3]);
    disposeGradients(gradients);
  });

  it("are the upstream itself for a loss that is a leaf", async () => {
    const device = double();
    using p = counting(device, []);
    using tape = new Tape(device, [p]);
    using gradient = tape.backward(p).get(p)!;
    expect(await values(gradient)).toEqual([1]);
  });

  it("are f32 for an f16 leaf, and follow the value elsewhere", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const w = device.tensor([1, 2], [1, 2], { dtype: "f16" });
      const gain = device.tensor([1, 1], [2]);
      const x = device.tensor([3, 4], [1, 2], { dtype: "f16" });
      using tape = new Tape(device, [w, gain]);
      const loss = tape.sum(tape.cast(tape.linear(tape.rmsNorm(x, gain), w), { to: "f32" }));
      const gradients = tape.backward(loss);
      for (const leaf of [w, gain]) {
        expect(gradients.get(leaf)!.dtype).toBe("f32");
        expect(gradients.get(leaf)!.shape).toEqual(leaf.shape);
      }
    });
  });

  it("keep small terms that f16 would lose: dw of f16 activations is summed and stored in f32", async () => {
    const device = new CpuDevice();
    using w = device.tensor([1], [1, 1]);
    using x = device.tensor([2 ** -20], [1, 1], { dtype: "f16" });
    using upstream = device.tensor([2 ** -20], [1, 1], { dtype: "f16" });
    using tape = new Tape(device, [w]);
    using y = tape.linear(x, w);
    using gradient = tape.backward(y, upstream).get(w)!;
    expect(await values(gradient)).toEqual([2 ** -40]);
  });

  it("leave out unused leaves when asked to", () => {
    const device = double();
    device.scope(() => {
      const [p, q] = [counting(device, [1]), counting(device, [1])];
      using tape = new Tape(device, [p, q]);
      const gradients = tape.backward(tape.mul(p, p), null, { allowUnused: true });
      expect([...gradients.keys()]).toEqual([p]);
    });
  });
});
