import { CpuDevice, ParamStore, type Tensor, TestRandom } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  AdamW,
  accumulateGradients,
  clipGlobalNorm,
  disposeGradients,
  type Gradients,
} from "../src/index.ts";
import { expectCode, expectNoLeaks, propertyRuns, relativeError } from "./support.ts";

const double = () => new CpuDevice({ precision: "f64" });
const read = async (tensor: Tensor): Promise<Float64Array> => Float64Array.from(await tensor.read());

/** Parameters a[5] and norm[3], drawn. */
function store(device: CpuDevice, pick: TestRandom): ParamStore {
  const params = new ParamStore(device, "adapter");
  params.add("a", device.tensor(pick.normals(5), [5]));
  params.add("norm", device.tensor(pick.normals(3), [3]));
  return params;
}

/** Gradients of the given values, in the order of the store. */
const gradientsOf = (params: ParamStore, values: readonly ArrayLike<number>[]): Gradients =>
  new Map([...params].map(([, leaf], i) => [leaf, params.device.tensor(values[i], leaf.shape)]));

/** AdamW as PyTorch's single-tensor loop writes it: decay first, and the corrections outside the square root. */
class PlainAdamW {
  readonly m: Float64Array;
  readonly v: Float64Array;
  readonly p: Float64Array;
  #step = 0;
  constructor(p: Float64Array) {
    this.p = p;
    this.m = new Float64Array(p.length);
    this.v = new Float64Array(p.length);
  }
  step(
    g: ArrayLike<number>,
    lr: number,
    [beta1, beta2]: readonly [number, number],
    eps: number,
    decay: number,
  ): void {
    this.#step++;
    const stepSize = lr / (1 - beta1 ** this.#step);
    const root = Math.sqrt(1 - beta2 ** this.#step);
    for (let i = 0; i < this.p.length; i++) {
      this.p[i] *= 1 - lr * decay;
      this.m[i] += (g[i] - this.m[i]) * (1 - beta1);
      this.v[i] = this.v[i] * beta2 + g[i] * g[i] * (1 - beta2);
      this.p[i] -= (stepSize * this.m[i]) / (Math.sqrt(this.v[i]) / root + eps);
    }
  }
}

describe("AdamW", () => {
  it("follows a plain implementation for ten steps, with clipping, exclusion and a changing rate", async () => {
    const options = fc.record({
      seed: fc.integer(),
      betas: fc.constantFrom([0.9, 0.999] as const, [0.8, 0.95] as const, [0, 0] as const),
      eps: fc.constantFrom(1e-8, 1e-3),
      weightDecay: fc.constantFrom(0, 0.01, 0.3, 1.5),
      scale: fc.constantFrom(null, 0.25),
    });
    const property = fc.asyncProperty(options, async ({ seed, betas, eps, weightDecay, scale }) => {
      const device = double();
      const pick = new TestRandom(seed);
      const params = store(device, pick);
      const exclude = (name: string) => name === "norm";
      const adamw = new AdamW(params, { betas, eps, weightDecay, exclude });
      const [a, norm] = [
        new PlainAdamW(await read(params.get("a"))),
        new PlainAdamW(await read(params.get("norm"))),
      ];
      for (let step = 1; step <= 10; step++) {
        const g = [pick.normals(5), pick.normals(3, 1e-3)];
        const lr = 0.1 / step;
        device.scope(() => {
          const gradScale = scale === null ? null : device.tensor([scale], []);
          adamw.step(gradientsOf(params, g), { lr, gradScale });
        });
        const scaled = g.map((each) => each.map((x) => x * (scale ?? 1)));
        a.step(scaled[0], lr, betas, eps, weightDecay);
        norm.step(scaled[1], lr, betas, eps, 0);
        const { tensors, step: done } = adamw.exportState();
        expect(done).toBe(step);
        for (const [name, plain] of [
          ["a", a],
          ["norm", norm],
        ] as const) {
          expect(relativeError(await read(params.get(name)), plain.p)).toBeLessThan(1e-12);
          expect(relativeError(await read(tensors.get(`m.${name}`)!), plain.m)).toBeLessThan(1e-12);
          expect(relativeError(await read(tensors.get(`v.${name}`)!), plain.v)).toBeLessThan(1e-12);
        }
      }
      adamw.dispose();
      params.dispose();
      expectNoLeaks(device);
    });
    await fc.assert(property, propertyRuns(30));
  });

  it("continues from an exported state as if it had never stopped", async () => {
    const device = double();
    const pick = new TestRandom(3);
    using params = store(device, pick);
    const start = await Promise.all([...params].map(async ([, parameter]) => read(parameter)));
    const batches = Array.from({ length: 6 }, () => [pick.normals(5), pick.normals(3)]);
    const run = (adamw: AdamW, part: typeof batches) => {
      for (const g of part) device.scope(() => adamw.step(gradientsOf(params, g), { lr: 0.01 }));
    };
    const rewind = () =>
      device.scope(() => {
        for (const [i, [, parameter]] of [...params].entries()) {
          device.ops.fill(parameter, { value: 0 });
          device.ops.accumulate(parameter, device.tensor(start[i], parameter.shape));
        }
      });
    using whole = new AdamW(params);
    run(whole, batches);
    const want = await read(params.get("a"));

    using resumed = new AdamW(params);
    run(resumed, batches.slice(3)); // a past of its own, of which the restored state must leave no trace
    rewind();
    using first = new AdamW(params);
    run(first, batches.slice(0, 2));
    const { step, tensors } = first.exportState();
    for (const [name, tensor] of resumed.exportState().tensors)
      device.assign(tensor, await tensors.get(name)!.read());
    resumed.stepsDone = step;
    expect(resumed.stepsDone).toBe(2);
    run(resumed, batches.slice(2));
    expect(await read(params.get("a"))).toEqual(want);
  });

  it("accounts its moments as optimizer state, before the first step", () => {
    const device = new CpuDevice();
    using params = store(device, new TestRandom(1));
    const adamw = new AdamW(params);
    expect(device.memory.live.optimizer).toBe(2 * (32 + 16));
    adamw.dispose();
    expect(device.memory.live.optimizer).toBe(0);
  });

  it.each(["f32", "8bit"] as const)("leaves to another what is not its own, with %s state", async (state) => {
    const device = double();
    using params = store(device, new TestRandom(1));
    using adamw = new AdamW(params, { state, only: (name) => name !== "a" });
    const before = await Promise.all([...params].map(([, parameter]) => read(parameter)));
    device.scope(() => {
      const norm = device.tensor([1, 2, 3], [3]);
      adamw.step(new Map([[params.get("norm"), norm]]), { lr: 0.1 });
    });
    expect(await read(params.get("a"))).toEqual(before[0]);
    expect(await read(params.get("norm"))).not.toEqual(before[1]);
    expect([...adamw.exportState().tensors.keys()].filter((name) => name.endsWith(".a"))).toEqual([]);
  });

  it("refuses with A-OPTIMIZER, and changes nothing", async () => {
    const device = double();
    using params = store(device, new TestRandom(1));
    for (const bad of [
      { betas: [1, 0.9] as const },
      { eps: 0 },
      { weightDecay: -0.1 },
      { weightDecay: Number.NaN },
      { weightDecay: Number.POSITIVE_INFINITY },
    ]) {
      expectCode("A-OPTIMIZER", () => new AdamW(params, bad));
    }
    using adamw = new AdamW(params);
    const before = await read(params.get("a"));
    const all = gradientsOf(params, [new Float64Array(5).fill(1), new Float64Array(3)]);
    for (const lr of [-1, Number.NaN, Number.POSITIVE_INFINITY])
      expectCode("A-OPTIMIZER", () => adamw.step(all, { lr }));
    const some = new Map([...all].slice(0, 1));
    expectCode("A-OPTIMIZER", () => adamw.step(some, { lr: 1 }), "norm has no gradient");
    using pair = device.zeros([2]);
    expectCode("T-SHAPE", () => adamw.step(all, { lr: 1, gradScale: pair }));
    disposeGradients(all);
    for (const count of [0.5, -1, Number.NaN]) {
      expectCode("A-OPTIMIZER", () => {
        adamw.stepsDone = count;
      });
    }
    expect(adamw.stepsDone).toBe(0);
    expect(await read(params.get("a"))).toEqual(before);
    using half = new ParamStore(device, "adapter");
    half.add("h", device.tensor([1], [1], { dtype: "f16" }));
    expectCode("A-OPTIMIZER", () => new AdamW(half), "h is f16");
    new AdamW(half, { only: () => false }).dispose();
  });

  it("refuses an unknown format of its moments", () => {
    using params = store(double(), new TestRandom(1));
    expectCode("A-OPTIMIZER", () => new AdamW(params, { state: "8-bit" as "8bit" }), 'state is "8-bit"');
  });

  it("says that it was disposed, or its parameters, to whoever uses it afterwards", async () => {
    const device = double();
    const params = store(device, new TestRandom(1));
    const adamw = new AdamW(params);
    const other = new AdamW(params);
    const all = gradientsOf(params, [new Float64Array(5), new Float64Array(3)]);
    const before = await read(params.get("a"));
    adamw.dispose();
    const text = "was asked of an AdamW that was disposed";
    expectCode("T-USE-AFTER-FREE", () => adamw.step(all, { lr: 1 }), `step ${text}`);
    expectCode("T-USE-AFTER-FREE", () => adamw.exportState(), `exportState ${text}`);
    expect(adamw.stepsDone).toBe(0);
    expect(await read(params.get("a"))).toEqual(before);
    params.dispose();
    expectCode("T-USE-AFTER-FREE", () => other.step(all, { lr: 1 }), 'a ParamStore of "adapter" tensors');
    expect(other.stepsDone).toBe(0);
    other.dispose();
    disposeGradients(all);
    expectNoLeaks(device);
  });

  it("leaves nothing behind when its state does not fit", () => {
    const device = new CpuDevice();
    const params = store(device, new TestRandom(1));
    device.memory.limitBytes = device.memory.liveBytes + 70; // two moments of a, none of norm
    expectCode("T-OUT-OF-MEMORY", () => new AdamW(params));
    params.dispose();
    expectNoLeaks(device);
  });
});

describe("clipGlobalNorm", () => {
  it("gives the norm over all gradients and PyTorch's factor", async () => {
    const property = fc.asyncProperty(fc.integer(), fc.constantFrom(0.1, 1, 100), async (seed, maxNorm) => {
      const device = double();
      const params = store(device, new TestRandom(seed));
      const pick = new TestRandom(seed + 1);
      const g = [pick.normals(5), pick.normals(3)];
      const gradients = gradientsOf(params, g);
      const live = device.memory.liveCount;
      const { factor, norm } = clipGlobalNorm(gradients, maxNorm);
      expect(device.memory.liveCount).toBe(live + 2);
      const want = Math.hypot(...g[0], ...g[1]);
      expect(await norm.item()).toBeCloseTo(want, 12);
      expect(await factor.item()).toBeCloseTo(Math.min(1, maxNorm / (want + 1e-6)), 12);
      for (const tensor of [factor, norm]) tensor.dispose();
      disposeGradients(gradients);
      params.dispose();
      expectNoLeaks(device);
    });
    await fc.assert(property, propertyRuns(20));
  });

  it("refuses a bound below 0, and an empty map, with A-CLIP", () => {
    const device = new CpuDevice();
    using parameter = device.zeros([2]);
    using gradient = device.zeros([2]);
    for (const maxNorm of [-1, Number.NaN]) {
      expectCode("A-CLIP", () => clipGlobalNorm(new Map([[parameter, gradient]]), maxNorm));
    }
    expectCode("A-CLIP", () => clipGlobalNorm(new Map(), 1));
  });
});

describe("accumulateGradients", () => {
  it("adds micro-batches up, across scopes, and frees what it consumed", async () => {
    const device = double();
    const params = store(device, new TestRandom(1));
    const totals: Gradients = new Map();
    for (const factor of [1, 10, 100]) {
      device.scope(() => {
        const batch = gradientsOf(params, [[1, 2, 3, 4, 5].map((x) => x * factor), [0, 0, factor]]);
        accumulateGradients(totals, batch);
        expect(batch.size).toBe(0);
      });
    }
    const live = device.memory.live;
    expect([live.gradients, live.workspace]).toEqual([48, 0]);
    expect([...(await read(totals.get(params.get("a"))!))]).toEqual([111, 222, 333, 444, 555]);
    expect([...(await read(totals.get(params.get("norm"))!))]).toEqual([0, 0, 111]);
    disposeGradients(totals);
    expect(totals.size).toBe(0);
    params.dispose();
    expectNoLeaks(device);
  });
});
