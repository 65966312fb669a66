/** `checkpoint`: the same gradients for fewer saved bytes. */
import {
  CpuDevice,
  type Device,
  type Ops,
  type Shape,
  type SidenetError,
  type Tensor,
  TestRandom,
} from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { checkpoint, disposeGradients, type Recomputed, Tape } from "../src/index.ts";
import {
  counting,
  expectCode,
  expectNoLeaks,
  FailingDevice,
  propertyRuns,
  relativeError,
} from "./support.ts";

interface Case {
  /** The first is x, of the shape of the result. */
  readonly shapes: readonly Shape[];
  readonly fn: Recomputed;
}

const [B, T, H, G, D, C] = [2, 5, 4, 2, 4, 16];

const CASES: Record<string, Case> = {
  "elementwise ops with a value used twice": {
    shapes: [
      [3, 4],
      [3, 4],
    ],
    fn: (ops, x, y) => ops.add(ops.mul(ops.silu(x), y), ops.mul(x, x)),
  },
  "a gated feed-forward layer": {
    shapes: [
      [6, 8],
      [12, 8],
      [12, 8],
      [8, 12],
    ],
    fn: (ops, x, gate, up, down) => ops.linear(ops.siluMul(ops.linear(x, gate), ops.linear(x, up)), down),
  },
  "reductions and views": {
    shapes: [[4, 6], [6]],
    fn: (ops, x, gain) =>
      ops.softmax(ops.reshape(ops.rmsNorm(ops.reshape(x, { shape: [2, 2, 6] }), gain), { shape: [4, 6] })),
  },
  "a transformer block": {
    shapes: [
      [B, T, C],
      [C],
      [H * D, C],
      [G * D, C],
      [G * D, C],
      [C, H * D],
      [C],
      [2 * C, C],
      [2 * C, C],
      [C, 2 * C],
    ],
    fn: (ops, x, gain1, q, k, v, o, gain2, gate, up, down) => {
      const heads = (t: Tensor, n: number) => ops.reshape(t, { shape: [B, T, n, D] });
      const h = ops.rmsNorm(x, gain1);
      const y = ops.attention(
        heads(ops.linear(h, q), H),
        heads(ops.linear(h, k), G),
        heads(ops.linear(h, v), G),
      );
      const mid = ops.add(x, ops.linear(ops.reshape(y, { shape: [B, T, H * D] }), o));
      const f = ops.rmsNorm(mid, gain2);
      return ops.add(mid, ops.linear(ops.siluMul(ops.linear(f, gate), ops.linear(f, up)), down));
    },
  },
};

interface Result {
  readonly gradients: readonly ArrayLike<number>[];
  readonly savedBytes: number;
}

/** Gradients of Σ (f(f(x)))² for the inputs that `tracked` chooses, two calls deep, with the same parameters in both. */
async function run(
  device: Device,
  { shapes, fn }: Case,
  seed: number,
  tracked: readonly boolean[],
  with_: boolean,
): Promise<Result> {
  const pick = new TestRandom(seed);
  const inputs = shapes.map((shape) =>
    device.tensor(
      pick.normals(
        shape.reduce((a, b) => a * b, 1),
        0.5,
      ),
      shape,
      { category: "weights" },
    ),
  );
  const leaves = inputs.filter((_, i) => tracked[i % tracked.length]);
  const tape = new Tape(device, leaves);
  const [first, ...rest] = inputs;
  const call = (x: Tensor): Tensor => (with_ ? checkpoint(tape, fn, [x, ...rest]) : fn(tape, x, ...rest));
  const loss = device.scope(() => {
    const y = call(call(tape.scale(first, { factor: 1.5 })));
    return tape.sum(tape.mul(y, y));
  });
  const { savedBytes } = tape;
  const gradients = tape.backward(loss);
  const values = await Promise.all(leaves.map((leaf) => gradients.get(leaf)!.read()));
  for (const leaf of leaves) expect(gradients.get(leaf)!.category).toBe("gradients");
  expect(device.memory.live).toMatchObject({ saved: 0 });
  disposeGradients(gradients);
  for (const tensor of [loss, ...inputs]) tensor.dispose();
  expectNoLeaks(device);
  return { gradients: values, savedBytes };
}

async function compare(
  device: Device,
  name: string,
  seed: number,
  tracked: readonly boolean[],
  limit: number,
) {
  const plain = await run(device, CASES[name], seed, tracked, false);
  const lean = await run(device, CASES[name], seed, tracked, true);
  for (const [i, want] of plain.gradients.entries()) {
    const error = relativeError(Float64Array.from(lean.gradients[i]), Float64Array.from(want));
    expect(error, `${name}, leaf ${i}`).toBeLessThan(limit);
  }
  return { plain: plain.savedBytes, lean: lean.savedBytes };
}

describe("checkpoint", () => {
  it.each(Object.keys(CASES))("has the gradients of the tape without it: %s", async (name) => {
    const device = new CpuDevice({ precision: "f64" });
    const masks = fc
      .array(fc.boolean(), { minLength: 3, maxLength: 10 })
      .filter((mask) => mask.includes(true));
    await fc.assert(
      fc.asyncProperty(fc.nat(), masks, async (seed, mask) => {
        await compare(device, name, seed, [true, ...mask], 1e-12);
      }),
      propertyRuns(20),
    );
  });

  it("saves its inputs alone", async () => {
    const { plain, lean } = await compare(new CpuDevice(), "a transformer block", 1, [true], 1e-5);
    // x of either call, and the result for its square; the parameters are resident.
    expect(lean).toBe(3 * 4 * B * T * C);
    expect(plain).toBeGreaterThan(5 * lean);
  });

  it("is one record, and none where nothing is tracked", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const [x, w] = [counting(device, [2, 2]), counting(device, [2, 2])];
      using tape = new Tape(device, [w]);
      const y = checkpoint(tape, (ops, a) => ops.silu(ops.silu(a)), [x]);
      expect(tape.isTracked(y)).toBe(false);
      const z = checkpoint(tape, (ops, a, b) => ops.linear(a, b), [y, w]);
      expect(tape.isTracked(z)).toBe(true);
      expect(tape.records).toMatchObject([{ op: "checkpoint", tracked: ["1"] }]);
    });
    expectNoLeaks(device);
  });

  it("does not copy its gradients, which are in new memory", () => {
    const device = new CpuDevice();
    using w = counting(device, [3]);
    using tape = new Tape(device, [w]);
    using loss = device.scope(() => tape.sum(checkpoint(tape, (ops, x) => ops.mul(x, x), [w])));
    const called: string[] = [];
    device.onOp = (name) => called.push(name);
    disposeGradients(tape.backward(loss));
    expect(called).toContain("mul");
    expect(called).not.toContain("cast"); // as a gradient that shares its memory is copied
  });

  it("takes one tensor twice, an input that is returned, and f16 activations", async () => {
    const device = new CpuDevice();
    const gradient = async (body: (tape: Tape, x: Tensor) => Tensor): Promise<number[]> => {
      using x = device.tensor([1, 2], [2]);
      using tape = new Tape(device, [x]);
      using loss = device.scope(() => tape.sum(body(tape, x)));
      const gradients = tape.backward(loss);
      const values = [...(await gradients.get(x)!.read())];
      disposeGradients(gradients);
      return values;
    };
    expect(await gradient((tape, x) => checkpoint(tape, (ops, a, b) => ops.mul(a, b), [x, x]))).toEqual([
      2, 4,
    ]);
    expect(await gradient((tape, x) => checkpoint(tape, (_, a) => a, [x]))).toEqual([1, 1]);
    const half = await gradient((tape, x) => {
      const y = checkpoint(tape, (ops, a) => ops.mul(a, a), [tape.cast(x, { to: "f16" })]);
      return tape.cast(y, { to: "f32" });
    });
    expect(half).toEqual([2, 4]);
    expectNoLeaks(device);
  });

  it("is a plain call with other ops than a tape's, and may be inside another", async () => {
    const device = new CpuDevice({ precision: "f64" });
    using x = device.tensor([1, 2, 3], [3]);
    using tape = new Tape(device, [x]);
    const square: Recomputed = (ops, a) => ops.mul(a, a);
    const nested: Recomputed = (ops, a) => checkpoint(ops, square, [checkpoint(ops, square, [a])]);
    using plain = device.scope(() => nested(device.ops, x));
    expect([...(await plain.read())]).toEqual([1, 16, 81]);
    using loss = device.scope(() => tape.sum(checkpoint(tape, nested, [x])));
    const gradients = tape.backward(loss);
    expect([...(await gradients.get(x)!.read())]).toEqual([4, 32, 108]);
    disposeGradients(gradients);
    expectCode("A-CHECKPOINT", () => checkpoint(device.ops, square, []), "no inputs");
    expect(device.memory.liveCount).toBe(3);
  });

  it("says how a tensor that is freed before the backward pass is used: as an input", () => {
    const device = new CpuDevice();
    using x = device.tensor([1, 2], [2]);
    using tape = new Tape(device, [x]);
    using loss = device.scope(() => {
      const freed = device.tensor([3, 4], [2]);
      return tape.sum(checkpoint(tape, (ops, a) => ops.mul(a, freed), [x]));
    });
    expectCode("T-USE-AFTER-FREE", () => tape.backward(loss), "give it this tensor as an input");
    expect(device.memory.liveCount).toBe(2);
  });

  it("finds trained tensors that the function uses without being given them", async () => {
    const device = new CpuDevice({ precision: "f64" });
    const [x, w, bias] = [counting(device, [2, 3]), counting(device, [3, 3]), counting(device, [3])];
    const layer = (ops: Ops, a: Tensor) => ops.silu(ops.linear(a, w, bias));
    const gradients = async (body: (tape: Tape) => Tensor) => {
      using tape = new Tape(device, [x, w, bias]);
      using loss = device.scope(() => tape.sum(body(tape)));
      const made = tape.backward(loss);
      const values = await Promise.all([x, w, bias].map((leaf) => made.get(leaf)!.read()));
      disposeGradients(made);
      return values;
    };
    const wanted = await gradients((tape) => layer(tape, layer(tape, x)));
    const once = (ops: Ops, a: Tensor) => checkpoint(ops, layer, [a]);
    expect(await gradients((tape) => once(tape, once(tape, x)))).toEqual(wanted);
    const nested = (ops: Ops, a: Tensor) => once(ops, once(ops, a));
    expect(await gradients((tape) => checkpoint(tape, nested, [x]))).toEqual(wanted);
    // A given tensor and a captured one are the same leaf; the result may be a captured leaf itself.
    const both = (ops: Ops, a: Tensor, given: Tensor) => ops.add(layer(ops, a), ops.linear(a, given));
    expect(await gradients((tape) => checkpoint(tape, both, [x, w]))).toEqual(
      await gradients((tape) => both(tape, x, w)),
    );
    expect(
      await gradients((tape) =>
        tape.add(
          layer(tape, x),
          checkpoint(tape, () => bias, [device.zeros([1])]),
        ),
      ),
    ).toEqual(await gradients((tape) => tape.add(layer(tape, x), bias)));
    for (const tensor of [x, w, bias]) tensor.dispose();
    expectNoLeaks(device);
  });

  it("refuses what it cannot compute again, and leaves nothing behind", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const [x, w] = [counting(device, [2, 2]), counting(device, [2, 2])];
      using tape = new Tape(device, [x, w]);
      const bad = (fn: (ops: Ops, x: Tensor) => unknown) => () => checkpoint(tape, fn as Recomputed, [x]);
      const made = tape.silu(w);
      const live = device.memory.liveBytes;
      expectCode(
        "A-CHECKPOINT",
        bad((ops, a) => [ops.silu(a), a]),
        "an array of 2",
      );
      expectCode(
        "A-CHECKPOINT",
        bad(() => null),
        "null",
      );
      expectCode(
        "A-CHECKPOINT",
        bad(async () => {}),
        "",
      );
      expectCode(
        "A-CHECKPOINT",
        bad((ops, a) => ops.argmax(a)),
        "i32",
      );
      expectCode(
        "A-CHECKPOINT",
        bad((ops, a) => ops.linear(a, made)),
        "Add it to the inputs",
      );
      expectCode(
        "A-CHECKPOINT",
        bad(() => made),
        "Add it to the inputs",
      );
      expectCode(
        "A-IN-PLACE",
        bad((ops, a) => ops.fill(a, { value: 0 })),
      );
      expect(device.memory.liveBytes).toBe(live);
      expect(tape.records).toMatchObject([{ op: "silu" }]);
      expectCode(
        "A-CHECKPOINT",
        bad(() => tape.silu(x)),
        "used the tape",
      );
      tape.dispose();
      expectCode(
        "A-CLOSED",
        bad((ops, a) => ops.silu(a)),
      );
    });
    expectNoLeaks(device);
  });

  it("names an input that its result does not depend on", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const [x, w] = [counting(device, [1]), counting(device, [1])];
      using tape = new Tape(device, [x, w]);
      const y = checkpoint(tape, (ops, a) => ops.silu(a), [x, w]);
      expectCode("A-UNUSED", () => tape.backward(y), "input 1 of a checkpoint");
    });
    expectNoLeaks(device);
  });

  it("frees all after an op that fails, whichever it is", () => {
    const device = new FailingDevice();
    const { shapes, fn } = CASES["a transformer block"];
    const inputs = shapes.map((shape) => counting(device, shape));
    const start = device.memory.liveBytes;
    let failures = 0;
    for (let done = false; !done; failures++) {
      device.opsLeft = failures;
      try {
        using tape = new Tape(device, inputs);
        using loss = device.scope(() => tape.sum(checkpoint(tape, fn, inputs)));
        disposeGradients(tape.backward(loss));
        done = true;
      } catch (error) {
        expect((error as SidenetError).code).toBe("TEST-LOST");
      }
      expect(device.memory.liveBytes).toBe(start);
    }
    expect(failures).toBeGreaterThan(25);
    for (const input of inputs) input.dispose();
    expectNoLeaks(device);
  });
});

it.runIf(process.env.SIDENET_DEVICE !== "cpu")("checkpoint has the same gradients on WebGPU", async () => {
  const device = await openNodeWebGpu({ poison: true });
  try {
    for (const name of Object.keys(CASES)) await compare(device, name, 3, [true], 1e-5);
  } finally {
    device.dispose();
  }
});
