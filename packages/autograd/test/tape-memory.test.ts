/** What a tape holds, for how long, and that nothing stays. */
import {
  CpuDevice,
  type Device,
  MetaDevice,
  type Ops,
  ParamStore,
  type SidenetError,
  type Tensor,
} from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { type Gradients, Tape } from "../src/index.ts";
import { counting, expectCode, expectNoLeaks, FailingDevice } from "./support.ts";

/** Notes the saved bytes before each op. */
class WatchedDevice extends CpuDevice {
  readonly savedBefore: [string, number][] = [];
  protected override compute(execution: Parameters<CpuDevice["compute"]>[0]): void {
    this.savedBefore.push([execution.row.name, this.memory.live.saved]);
    super.compute(execution);
  }
}

const N = 4; // rows
const C = 8; // columns
const BYTES = 4 * N * C;

/** A frozen model of `depth` layers beside a side network of two, which reads its last two hidden states. */
function ladderLoss(device: Device, tape: Ops, depth: number, side: ParamStore): Tensor {
  return device.scope(() => {
    const { ops } = device;
    let h = device.keep(counting(device, [N, C]));
    const rungs: Tensor[] = [];
    for (let layer = 0; layer < depth; layer++) {
      h = device.scope(() => ops.rmsNorm(ops.add(h, ops.silu(ops.linear(h, frozenWeight(device))))), {
        consume: [h],
      });
      if (layer >= depth - 2) {
        rungs.push(h);
        h = ops.scale(h, { factor: 1 });
      }
    }
    let s = device.zeros([N, C]);
    for (const [k, rung] of rungs.entries()) {
      device.categorize(rung, "rungs");
      s = tape.add(s, tape.linear(rung, side.get(`down.${k}`)));
      s = tape.add(s, tape.silu(s));
    }
    return tape.sum(tape.mul(s, s));
  });
}

const frozenWeight = (device: Device): Tensor => device.tensor(new Float64Array(C * C).fill(0.01), [C, C]);

function sideStore(device: Device): ParamStore {
  const side = new ParamStore(device, "adapter");
  for (const k of [0, 1]) side.add(`down.${k}`, device.tensor(new Float64Array(C * C).fill(0.02), [C, C]));
  return side;
}

describe("a frozen model beside a tape", () => {
  it("is not recorded, and what the tape holds does not grow with its depth", () => {
    const held: unknown[] = [];
    for (const depth of [2, 9]) {
      const device = new CpuDevice();
      using side = sideStore(device);
      using tape = new Tape(device, side);
      const loss = ladderLoss(device, tape, depth, side);
      expect(tape.records.some(({ op }) => op === "rmsNorm")).toBe(false);
      // Side activations: the inputs of two silu, and of the square.
      expect(tape.savedBytes).toBe(3 * BYTES);
      expect(device.memory.live.saved).toBe(3 * BYTES);
      expect(device.memory.live.rungs, "for the gradients of the two rung weights").toBe(2 * BYTES);
      held.push(tape.records, device.memory.live);
      loss.dispose();
    }
    expect(held.slice(2)).toEqual(held.slice(0, 2));
  });

  it("costs its tape nothing when all of it is computed through a tape without leaves on its path", () => {
    const device = new CpuDevice();
    device.scope(() => {
      using tape = new Tape(device, []);
      let h: Tensor = counting(device, [N, C]);
      for (let layer = 0; layer < 5; layer++) h = tape.silu(tape.linear(h, frozenWeight(device)));
      expect(tape.savedBytes).toBe(0);
      expect(tape.records).toEqual([]);
    });
    expectNoLeaks(device);
  });

  it("plans the same on meta: records and bytes", () => {
    const describeStep = (device: Device) => {
      using side = sideStore(device);
      using tape = new Tape(device, side);
      using loss = ladderLoss(device, tape, 3, side);
      const before = [tape.records, tape.savedBytes, device.memory.live];
      const gradients = tape.backward(loss);
      const result = [...before, device.memory.live, device.flops];
      for (const gradient of gradients.values()) gradient.dispose();
      return result;
    };
    const [cpu, meta] = [new CpuDevice(), new MetaDevice()];
    expect(describeStep(meta)).toEqual(describeStep(cpu));
    expectNoLeaks(cpu);
    expectNoLeaks(meta);
  });
});

describe("saved tensors", () => {
  it("are freed as the backward pass consumes them, and gradients of values with them", () => {
    const device = new WatchedDevice();
    const x = device.keep(counting(device, [N, C]), "adapter");
    using tape = new Tape(device, [x]);
    const depth = 6;
    const loss = device.scope(() => {
      let h = x;
      for (let i = 0; i < depth; i++) h = tape.silu(h);
      return tape.sum(h);
    });
    expect(device.memory.live.saved, "each silu's input but the leaf's").toBe((depth - 1) * BYTES);
    device.savedBefore.length = 0;
    device.memory.resetPeak();
    const gradients = tape.backward(loss);
    const saved = device.savedBefore
      .filter(([op]) => op === "siluBackward")
      .map(([, bytes]) => bytes / BYTES);
    expect(saved).toEqual([5, 4, 3, 2, 1, 0]);
    // At the first layer: five saves and x, dy and the result of the rule.
    expect(device.memory.peak().peakBytes).toBeLessThanOrEqual((5 + 1 + 1 + 1) * BYTES + 3 * 16);
    expect(tape.savedBytes).toBe(0);
    for (const tensor of [loss, x, ...gradients.values()]) tensor.dispose();
    expectNoLeaks(device);
  });

  it("are kept once, however many records need them", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const [x, p, q] = [counting(device, [N, C]), counting(device, [N, C]), counting(device, [N, C])];
      using tape = new Tape(device, [p, q]);
      tape.mul(x, p);
      tape.mul(x, q);
      expect(tape.savedBytes).toBe(BYTES);
    });
    expectNoLeaks(device);
  });

  it("count as saved while the tape needs them, unless they have a more telling category", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const [x, p] = [counting(device, [N, C]), counting(device, [N, C])];
      const rung = device.tensor(new Float64Array(N * C), [N, C], { category: "rungs" });
      const tape = new Tape(device, [p]);
      const y = tape.add(tape.mul(x, p), tape.mul(rung, p));
      expect([x.category, rung.category]).toEqual(["saved", "rungs"]);
      tape.backward(y, x);
      expect([x.category, rung.category]).toEqual(["workspace", "rungs"]);
      const other = new Tape(device, [p]);
      other.mul(x, p);
      expect(x.category).toBe("saved");
      other.dispose();
      expect(x.category).toBe("workspace");
    });
  });

  it.each([
    ["f16", BYTES / 2],
    ["int8", BYTES / 4 + 16], // codes and one scale
  ] as const)("keep one copy in %s of a rung, however many ops read it", (format, bytes) => {
    const device = new CpuDevice();
    device.scope(() => {
      const p = counting(device, [N, C]);
      using tape = new Tape(device, [p], { formats: { rungs: format } });
      device.scope(() => {
        const rung = device.tensor(new Float64Array(N * C), [N, C], { category: "rungs" });
        tape.mul(rung, p);
        tape.mul(rung, p);
      });
      expect(device.memory.live.rungs).toBe(bytes);
      expect(tape.savedBytes, "the original is not kept").toBe(0);
    });
    expectNoLeaks(device);
  });

  it("include a residual only when a tracked input's rule wants it", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const [x, gain] = [counting(device, [N, C]), counting(device, [C])];
      using tape = new Tape(device, [x]);
      tape.rmsNorm(x, gain);
      expect(tape.records[0].saved.map(({ name }) => name)).toEqual(["x", "gain", "rstd"]);
      expect(device.ops.rmsNorm(x, gain), "an untracked call makes none").not.toBeInstanceOf(Array);
      const head = counting(device, [3, C]);
      const targets = device.tensor(new Int32Array(N), [N], { dtype: "i32" });
      tape.lmHeadLoss(x, head, targets);
      expect(tape.records[1].saved.map(({ name }) => name)).toEqual(["dh"]);
    });
    expectNoLeaks(device);
  });

  it("outlive their parameter store until the tape goes", () => {
    const device = new CpuDevice();
    const x = counting(device, [1, 2]);
    const frozen = new ParamStore(device, "weights");
    frozen.add("w", counting(device, [1, 2]));
    const tape = new Tape(device, [x]);
    const loss = tape.linear(x, frozen.get("w"));
    frozen.dispose();
    for (const tensor of [loss, x, ...tape.backward(loss).values()]) tensor.dispose();
    expectNoLeaks(device);
  });
});

describe("the gradient rule of", () => {
  const rules: [name: string, tensors: number, f: (ops: Ops, x: Tensor) => Tensor][] = [
    ["sigmoid", 1, (ops, x) => ops.sigmoid(x)],
    ["silu", 1, (ops, x) => ops.silu(x)],
    ["tanh", 1, (ops, x) => ops.tanh(x)],
    ["gelu", 1, (ops, x) => ops.gelu(x)],
    ["sqrt", 2, (ops, x) => ops.sqrt(x)],
    ["pow", 2, (ops, x) => ops.pow(x, { exponent: 3 })],
    ["div", 3, (ops, x) => ops.div(counting(x.device, [N, C]), x)],
  ];
  it.each(rules)("%s makes at most %i tensors at a time", (_, tensors, f) => {
    const device = new MetaDevice();
    device.scope(() => {
      const x = counting(device, [N, C]);
      using tape = new Tape(device, [x]);
      const y = f(tape, x);
      const dy = device.empty([N, C]);
      device.memory.resetPeak();
      const { liveBytes } = device.memory;
      tape.backward(y, dy);
      expect((device.memory.peak().peakBytes - liveBytes) / BYTES).toBe(tensors);
    });
  });
});

describe("nothing stays behind", () => {
  /** A step with views, residuals, aliases of dy, casts and sums. */
  function step(device: Device, store: ParamStore): Gradients {
    using tape = new Tape(device, store);
    const loss = device.scope(() => {
      const x = device.tensor(new Float64Array(N * C).fill(0.5), [N, C], { dtype: "f16" });
      const [w, gain] = [store.get("w"), store.get("gain")];
      const h = tape.add(tape.linear(tape.rmsNorm(x, gain), w), tape.cast(x, { to: "f16" }));
      const y = tape.add(h, tape.siluMul(h, h));
      const back = tape.cast(tape.reshape(y, { shape: [N * C] }), { to: "f32" });
      return tape.sum(tape.add(back, tape.add(back, back)));
    });
    try {
      return tape.backward(loss);
    } finally {
      loss.dispose();
    }
  }

  const parameters = (device: Device): ParamStore => {
    const store = new ParamStore(device, "adapter");
    store.add("w", frozenWeight(device));
    store.add("gain", counting(device, [C]));
    return store;
  };

  it("after ten steps, with or without an open scope", () => {
    const device = new CpuDevice();
    const store = parameters(device);
    const start = device.memory.liveBytes;
    for (let i = 0; i < 5; i++) {
      for (const gradient of step(device, store).values()) gradient.dispose();
      expect(device.memory.liveBytes).toBe(start);
      device.scope(() => {
        step(device, store);
      });
      expect(device.memory.liveBytes).toBe(start);
    }
    store.dispose();
    expectNoLeaks(device);
  });

  it("after an op that fails, whichever it is", () => {
    const device = new FailingDevice();
    const store = parameters(device);
    const start = device.memory.liveBytes;
    let failures = 0;
    for (; ; failures++) {
      device.opsLeft = failures;
      let gradients: Gradients;
      try {
        gradients = step(device, store);
      } catch (error) {
        expect((error as SidenetError).code).toBe("TEST-LOST");
        expect(device.memory.liveBytes, (error as SidenetError).message).toBe(start);
        expect(device.memory.live.saved).toBe(0);
        continue;
      }
      for (const gradient of gradients.values()) gradient.dispose();
      break;
    }
    expect(failures, "ops of a step").toBeGreaterThan(20);
    store.dispose();
    expectNoLeaks(device);
  });

  it("after running out of memory", () => {
    const device = new CpuDevice();
    const store = parameters(device);
    const start = device.memory.liveBytes;
    for (let extra = 0; extra < 400; extra += 32) {
      device.memory.limitBytes = start + extra;
      expectCode("T-OUT-OF-MEMORY", () => step(device, store));
      expect(device.memory.liveBytes).toBe(start);
    }
    store.dispose();
    expectNoLeaks(device);
  });
});
