// An adapter of the user's own, given to the library's trainer, evaluation and generation; and what a loop of one's own may hand over.
import { CpuDevice, ParamStore, type Tensor, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import {
  type Adapter,
  type BlockAdapter,
  type BlockWeights,
  type Decoder,
  encodeAdapter,
  evaluateLoss,
  generate,
  makeBatch,
  parseAdapterConfig,
  shiftLabels,
  Trainer,
} from "../src/index.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";

/** Trains the gains of every block's first norm, and nothing else. */
class GainTuning implements Adapter, BlockAdapter {
  readonly method = "gains";
  readonly blocks = this;
  readonly parameters: ParamStore;

  constructor({ device, config: { numHiddenLayers, hiddenSize } }: Decoder) {
    this.parameters = new ParamStore(device, "adapter");
    const ones = new Float32Array(hiddenSize).fill(1);
    for (let i = 0; i < numHiddenLayers; i++) this.parameters.set(`${i}`, device.tensor(ones, [hiddenSize]));
  }

  tensors(layer: number): Tensor[] {
    return [this.parameters.get(`${layer}`)];
  }

  weights(_layer: number, frozen: BlockWeights, [gain]: readonly Tensor[]): BlockWeights {
    return { ...frozen, inputNorm: gain };
  }

  dispose(): void {
    this.parameters.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

const config = { ...drawModel(new TestRandom(3)), numHiddenLayers: 3 };

describe("an adapter of one's own", () => {
  it.each([false, true])(
    "is trained, evaluated, sampled and written (checkpointing: %s)",
    async (gradientCheckpointing) => {
      const device = new CpuDevice();
      using decoder = randomDecoder(device, config);
      using adapter = new GainTuning(decoder);
      using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.05, gradientCheckpointing });
      const batch = drawBatch(new TestRandom(4), config);
      const first = await evaluateLoss(decoder, adapter, [batch]);
      for (let step = 0; step < 5; step++) await trainer.step(batch);
      expect(await evaluateLoss(decoder, adapter, [batch])).toBeLessThan(first - 0.05);
      expect(await generate(decoder, adapter, [3, 4], { maxTokens: 3 })).toHaveLength(3);
      const files = await encodeAdapter(adapter, { name: "tiny", config });
      expect(JSON.parse(files.config)).toEqual({ method: "gains", base_model_name_or_path: "tiny" });
      expect(() => parseAdapterConfig(JSON.parse(files.config), "here")).toThrow(
        /L-ADAPTER-CONFIG\] here: the method "gains" is none of/,
      );
    },
  );
});

describe("a loop of one's own is told of", () => {
  it("labels that are not as many as tokens", () => {
    expect([...shiftLabels([1, 2, 3, 4], 2, 2)]).toEqual([2, -100, 4, -100]);
    for (const labels of [[1, 2, 3], [1, 2, 3, 4, 5], []])
      expect(() => shiftLabels(labels, 2, 2)).toThrow(
        /L-LABELS\] there are \d labels for 2 rows of 2 tokens/,
      );
  });

  it("batches that score nothing, and none at all, in training and in evaluation", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    using adapter = new GainTuning(decoder);
    using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.05 });
    const batch = drawBatch(new TestRandom(4), config);
    const unscored = {
      ...batch,
      labels: batch.labels.length ? new Int32Array(batch.labels.length).fill(-100) : [],
    };
    for (const batches of [[], [unscored]]) {
      await expect(trainer.step(batches)).rejects.toThrow(/L-NOTHING-TO-LEARN/);
      await expect(evaluateLoss(decoder, adapter, batches)).rejects.toThrow(/L-NOTHING-TO-LEARN/);
    }
    await expect(trainer.step([])).rejects.toThrow("there is no batch");
    expect(() => makeBatch([], 0, 8)).toThrow(/L-DATA/);
  });

  it("a number of new tokens that is none", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    for (const maxTokens of [-1, 1.5, Number.NaN, undefined as unknown as number])
      await expect(generate(decoder, null, [3], { maxTokens })).rejects.toThrow(/L-CONTEXT\] maxTokens/);
    expect(await generate(decoder, null, [3], { maxTokens: 0 })).toEqual([]);
  });
});
