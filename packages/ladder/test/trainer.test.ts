// A training step: what it gives the optimizer, and when it updates.
import { AdamW, type AdamWOptions, type Gradients, type OptimizerStep } from "@sidenet/autograd";
import { CpuDevice, type ParamStore, type Tensor, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import type { Adapter } from "../src/methods/adapter.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { Trainer, type TrainerOptions } from "../src/training/trainer.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";

const model = { ...drawModel(new TestRandom(3)), numHiddenLayers: 2 };
const batch = drawBatch(new TestRandom(4), model);

/** Trains a LoRA for some steps; returns the values of its last parameter. */
async function trained(options: Partial<TrainerOptions>): Promise<number[]> {
  using decoder = randomDecoder(new CpuDevice(), model);
  using adapter = makeAdapter({ method: "lora", lora: { rank: 2 } }, decoder, "tiny");
  using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.01, ...options });
  for (let step = 0; step < 4; step++) await trainer.step(batch);
  return Array.from(await [...adapter.parameters].at(-1)![1].read());
}

describe("the optimizer of a trainer", () => {
  it("is AdamW with the options given, else those of PyTorch", async () => {
    const of = (options: AdamWOptions) =>
      trained({ optimizer: (parameters) => new AdamW(parameters, options) });
    const pyTorch = await of({ betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01 });
    expect(await trained({})).toEqual(pyTorch);
    for (const options of [{ betas: [0.5, 0.8] }, { eps: 0.1 }, { weightDecay: 0.9 }] as const) {
      const values = await trained(options);
      expect(values).toEqual(await of(options));
      expect(values).not.toEqual(pyTorch);
    }
    expect(await trained({ optimizerState: "8bit" })).toEqual(await of({ state: "8bit" }));
  });

  it("is given each step's rate, and the factor that clips the gradients to the largest norm allowed", async () => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, model);
    const given: { lr: number; factor: Tensor }[] = [];
    class Watched extends AdamW {
      override step(gradients: Gradients, { lr, gradScale }: OptimizerStep): void {
        given.push({ lr, factor: device.retain(gradScale!) });
        super.step(gradients, { lr, gradScale: gradScale! });
      }
    }
    for (const [maxGradNorm, limit] of [
      [undefined, 1],
      [1e-3, 1e-3],
      [1e3, 1e3],
    ] as const) {
      using adapter = makeAdapter({ method: "lora", lora: { rank: 2 } }, decoder, "tiny");
      const pick = new TestRandom(5);
      for (const [name, parameter] of adapter.parameters) // the larger A is, the larger is the gradient of B
        if (name.includes("lora_A")) device.assign(parameter, pick.normals(parameter.size, 30));
      using trainer = new Trainer(decoder, adapter, {
        learningRate: (step) => 0.01 * 0.5 ** step,
        optimizer: (parameters: ParamStore) => new Watched(parameters),
        ...(maxGradNorm && { maxGradNorm }),
      });
      for (const rate of [0.01, 0.005]) {
        const { gradNorm, learningRate } = await trainer.step(batch);
        expect(gradNorm).toBeGreaterThan(2);
        const { lr, factor } = given.pop()!;
        expect([learningRate, lr]).toEqual([rate, rate]);
        expect(await factor.item()).toBeCloseTo(Math.min(1, limit / gradNorm), 6);
        factor.dispose();
      }
    }
  });
});

/** The values of every parameter of an adapter. */
async function valuesOf({ parameters }: Adapter): Promise<Record<string, number[]>> {
  const values: Record<string, number[]> = {};
  for (const [name, parameter] of parameters) values[name] = Array.from(await parameter.read());
  return values;
}

describe("a step", () => {
  const schedule = { learningRate: (step: number) => [0.1, 0.01, 0.2][step] };

  it("is the same update whether its loss is waited for or not", async () => {
    using decoder = randomDecoder(new CpuDevice(), model);
    const after: object[] = [];
    for (const waits of [true, false]) {
      using adapter = makeAdapter({ method: "lora", lora: { rank: 2 } }, decoder, "tiny");
      using trainer = new Trainer(decoder, adapter, schedule);
      const figures: number[] = [];
      for (let step = 0; step < 3; step++) {
        if (waits) {
          const { loss, gradNorm, tokens } = await trainer.step([batch, batch]);
          figures.push(loss, gradNorm);
          expect(tokens).toBe(2 * batch.batchSize * batch.length);
        } else {
          const { loss, norm } = trainer.dispatchStep([batch, batch]);
          figures.push(await loss.item(), await norm.item());
          loss.dispose();
          norm.dispose();
        }
      }
      after.push({ figures, values: await valuesOf(adapter), ...trainer.counters });
    }
    expect(after[1]).toEqual(after[0]);
  });

  it("updates nothing where a gradient is past all numbers though the loss is not", async () => {
    using decoder = randomDecoder(new CpuDevice(), model);
    using adapter = makeAdapter({ method: "lora", lora: { rank: 2 } }, decoder, "tiny");
    const [[, a]] = adapter.parameters;
    adapter.parameters.device.assign(a, new Float32Array(a.size).fill(1e30)); // B is 0, but not its gradient
    using trainer = new Trainer(decoder, adapter, schedule);
    const before = await valuesOf(adapter);
    const { loss, gradNorm, updated } = await trainer.step(batch);
    expect([Number.isFinite(loss), Number.isFinite(gradNorm), updated]).toEqual([true, false, false]);
    expect(await valuesOf(adapter)).toEqual(before);
    expect(trainer.counters).toEqual({ step: 1, passes: 1, updates: 0 });
  });
});
