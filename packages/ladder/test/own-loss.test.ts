// Losses of the user's own: in training, evaluation and plans.

import { CpuDevice, logSoftmax, type Ops, type Tensor, TestRandom } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { describe, expect, it, vi } from "vitest";
import {
  batchLoss,
  type Decoder,
  evaluateLoss,
  initializeAdapter,
  type LabeledBatch,
  type MakeLoss,
  type MethodOptions,
  measureStep,
  planStep,
  residualStream,
  type StepOptions,
  scoredPositions,
  shiftLabels,
  Trainer,
  type TrainerOptions,
} from "../src/index.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";

const config = { ...drawModel(new TestRandom(3)), numHiddenLayers: 3 };
const lora = { method: "lora", lora: { rank: 2 } } as const;

/** The sum of the log-probabilities of each row's labels, f32[B]. */
function rowLogProbabilities(
  decoder: Decoder,
  ops: Ops,
  y: Tensor,
  batch: LabeledBatch,
  head = decoder.head,
): Tensor {
  const { device } = decoder;
  const { batchSize: B, length: T } = batch;
  const targets = shiftLabels(batch.labels, B, T);
  const ids = device.tensor(targets, [B, T, 1], { dtype: "i32" }); // -100 is outside the vocabulary: 0
  const of = ops.gatherAlong(logSoftmax(ops, decoder.logits(ops, y, head)), ids);
  return ops.sum(ops.reshape(of, { shape: [B, T] }), { axis: 1 });
}

/** DPO (Rafailov et al. 2023) over pairs of rows, the preferred one first. */
const dpo: MakeLoss = (decoder, adapter) => ({
  count: ({ batchSize }) => batchSize / 2,
  readsFrozen: true,
  mean(ops, y, { batch, frozen }) {
    const [policy, reference] = [
      rowLogProbabilities(decoder, ops, y, batch, adapter?.head ?? undefined),
      rowLogProbabilities(decoder, decoder.device.ops, frozen!, batch),
    ];
    const gain = ops.reshape(ops.sub(policy, reference), { shape: [batch.batchSize / 2, 2] });
    const logs = logSoftmax(ops, ops.scale(gain, { factor: 0.5 })); // log σ(β (gain of one - gain of the other))
    return ops.neg(ops.mean(ops.slice(logs, { axis: 1, start: 0, count: 1 })));
  },
});

/** The library's loss, as a loss of one's own. */
const likelihood: MakeLoss = (decoder, adapter) => ({
  count: scoredPositions,
  mean: (ops, y, { batch }) => batchLoss(decoder, ops, y, batch, adapter?.head),
});

const pairs = (seed: number): LabeledBatch => {
  const pick = new TestRandom(seed);
  const [batchSize, length] = [4, 6];
  const inputIds = pick.ints(batchSize * length, 0, config.vocabSize - 1);
  const labels = inputIds.map((id, i) => (i % length < 1 + i / length ? -100 : id));
  return { inputIds, labels, attentionMask: null, batchSize, length };
};

async function losses(
  decoder: Decoder,
  options: Partial<TrainerOptions>,
  batches: LabeledBatch[],
  steps: number,
  method: MethodOptions = lora,
) {
  using adapter = await initializeAdapter(method, decoder, "tiny");
  using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.02, ...options });
  const found: number[] = [];
  for (let step = 0; step < steps; step++) found.push((await trainer.step(batches)).loss);
  found.push(await evaluateLoss(decoder, adapter, batches, options.loss ? { loss: options.loss } : {}));
  return found;
}

describe("a loss of one's own", () => {
  it("is trained: DPO begins at ln 2 and falls", async () => {
    using decoder = randomDecoder(await openNodeWasm(), config);
    const found = await losses(decoder, { loss: dpo }, [pairs(1), pairs(2)], 8);
    expect(found[0]).toBeCloseTo(Math.LN2, 6);
    expect(found.at(-1)).toBeLessThan(0.6);
  });

  it.each([
    ["ladder", 0],
    ["head", 0],
    ["lora", 1],
  ] as const)(
    "is given the frozen model's hidden state: with %s by %d further passes",
    async (method, further) => {
      using decoder = randomDecoder(await openNodeWasm(), config);
      const own: Tensor[] = [];
      const byItself: MakeLoss = (of, adapter) => ({
        ...dpo(of, adapter),
        readsFrozen: false,
        mean: (ops, y, inputs) =>
          dpo(of, adapter).mean(ops, y, { ...inputs, frozen: residualStream(of, null, inputs.forward) }),
      });
      const read: MakeLoss = (of, adapter) => ({
        ...dpo(of, adapter),
        mean(ops, y, inputs) {
          own.push(of.device.keep(of.device.retain(inputs.frozen!)));
          return dpo(of, adapter).mean(ops, y, inputs);
        },
      });
      const hidden = vi.spyOn(decoder, "hidden");
      const expected = await losses(decoder, { loss: byItself }, [pairs(1)], 4, { method });
      const passes = hidden.mock.calls.length;
      hidden.mockClear();
      expect(await losses(decoder, { loss: read }, [pairs(1)], 4, { method })).toEqual(expected);
      expect(hidden).toHaveBeenCalledTimes(passes - 5 * (1 - further)); // four steps and an evaluation
      const values = await Promise.all(own.map((state) => state.read()));
      for (const state of values) expect(state).toEqual(values[0]); // nothing that is trained changes it
      for (const state of own) state.dispose();
    },
  );

  it("cannot compare with a frozen model where that model is trained", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    await expect(losses(decoder, { loss: dpo }, [pairs(1)], 1, { method: "full" })).rejects.toThrow(
      /L-METHOD.*full fine-tuning changes the model itself/,
    );
  });

  it("weights batches by what it counts, so micro-batches of pairs give the same training", async () => {
    using decoder = randomDecoder(new CpuDevice({ precision: "f64" }), config);
    const whole = await losses(decoder, { loss: dpo }, [pairs(1), pairs(2)], 3);
    const parts = await losses(decoder, { loss: dpo, microBatchSize: 2 }, [pairs(1), pairs(2)], 3);
    for (const [i, loss] of parts.entries()) expect(loss).toBeCloseTo(whole[i], 10);
  });

  it("is not asked for a batch in which it counts nothing", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    const strict: MakeLoss = (own, adapter) => ({
      ...likelihood(own, adapter),
      mean(ops, y, inputs) {
        expect(scoredPositions(inputs.batch)).toBeGreaterThan(0);
        return likelihood(own, adapter).mean(ops, y, inputs);
      },
    });
    const none = { ...pairs(3), labels: Array.from(pairs(3).labels, () => -100) };
    const batches = [pairs(1), pairs(2)];
    expect(await losses(decoder, { loss: strict }, [batches[0], none, batches[1]], 3)).toEqual(
      await losses(decoder, { loss: likelihood }, batches, 3),
    );
  });

  it("is in an evaluation the mean over all that it counts", async () => {
    using decoder = randomDecoder(new CpuDevice({ precision: "f64" }), config);
    const batches = [4, 5, 6].map((seed) => drawBatch(new TestRandom(seed), config));
    const counts = batches.map(scoredPositions);
    expect(new Set(counts).size).toBeGreaterThan(1);
    const alone: number[] = [];
    for (const batch of batches) {
      using means = decoder.device.scope(() => {
        const y = residualStream(decoder, null, decoder.prepare(batch));
        return batchLoss(decoder, decoder.device.ops, y, batch);
      });
      alone.push(await means.item());
    }
    const sum = (values: readonly number[]) => values.reduce((a, b) => a + b);
    const mean = sum(alone.map((loss, i) => loss * counts[i])) / sum(counts);
    expect(await evaluateLoss(decoder, null, batches)).toBeCloseTo(mean, 12);
    expect(await evaluateLoss(decoder, null, batches, { loss: likelihood })).toBeCloseTo(mean, 12);
  });

  it("gives the library's training if it is the library's loss, evaluation included", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    const batches = [drawBatch(new TestRandom(4), config), drawBatch(new TestRandom(5), config)];
    expect(await losses(decoder, { loss: likelihood }, batches, 3)).toEqual(
      await losses(decoder, {}, batches, 3),
    );
  });

  it.each([lora, { method: "ladder" } as const])(
    "is planned with $method: the peak of a plan is that of a step",
    async (method) => {
      const step: StepOptions = {
        method,
        loss: dpo,
        storage: {},
        memory: { gradientCheckpointing: true },
        batchSize: 4,
        context: 8,
      };
      using device = await openNodeWasm();
      const plan = planStep(config, { ...step, profile: device.profile });
      const plain = planStep(config, { ...step, loss: likelihood, profile: device.profile });
      expect(measureStep(device, config, step).peakBytes).toBe(plan.peakBytes);
      expect(plan.flops).toBeGreaterThan(plain.flops); // those of the reference
    },
  );

  it("is refused with an option of the library's loss, or if its mean is no scalar", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    using adapter = await initializeAdapter(lora, decoder, "tiny");
    const options = { learningRate: () => 0.1, loss: dpo };
    expect(() => new Trainer(decoder, adapter, { ...options, lossChunkBytes: 1024 })).toThrow(/L-OPTION/);
    const rows: MakeLoss = (own) => ({ ...dpo(own, null), mean: (_, y) => y });
    using trainer = new Trainer(decoder, adapter, { ...options, loss: rows });
    await expect(trainer.step(pairs(1))).rejects.toThrow(/L-METHOD.*wanted f32 \[\]/);
    const nothing: MakeLoss = (own) => ({ ...dpo(own, null), count: () => 0 });
    await expect(evaluateLoss(decoder, adapter, [pairs(1)], { loss: nothing })).rejects.toThrow(
      /L-NOTHING-TO-LEARN/,
    );
  });
});
