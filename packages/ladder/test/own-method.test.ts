// Methods of the user's own in the places that an adapter has, an optimizer of the user's own, and plans of both.

import type { Gradients, Optimizer, OptimizerStep } from "@sidenet/autograd";
import { CpuDevice, type Ops, ParamStore, Random, type Tensor, TestRandom } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import {
  type Adapter,
  type BlockWeights,
  encodeAdapter,
  evaluateLoss,
  type Forward,
  generate,
  generateBatch,
  measureStep,
  mergeAdapter,
  parseAdapterConfig,
  planStep,
  readTrainerState,
  residualStream,
  type StepOptions,
  Trainer,
} from "../src/index.ts";
import { residualStreams } from "../src/methods/residual-stream.ts";
import { restoreAdapter, saveAdapter } from "../src/node/index.ts";
import {
  AttentionReader,
  config,
  GainTuning,
  GatedBlock,
  PrefixTuning,
  PromptTuning,
  Reft,
  RunningSum,
} from "./own-adapters.ts";
import { drawBatch, randomDecoder } from "./tiny-model.ts";

/** Lion (Chen et al. 2023). */
class Lion implements Optimizer {
  stepsDone = 0;
  readonly params: ParamStore;
  readonly moments: ParamStore;
  constructor(params: ParamStore) {
    this.params = params;
    this.moments = ParamStore.filled(params.device, "optimizer", (store) => {
      for (const [name, { shape }] of params) store.add(`m.${name}`, params.device.zeros(shape));
    });
  }
  step(gradients: Gradients, { lr, gradScale }: OptimizerStep): void {
    const { ops } = this.params.device;
    for (const [name, parameter] of this.params) {
      const m = this.moments.get(`m.${name}`);
      const g = ops.scaleBy(gradients.get(parameter)!, gradScale!);
      const direction = ops.sign(ops.add(ops.scale(m, { factor: 0.9 }), ops.scale(g, { factor: 0.1 })));
      ops.accumulate(parameter, ops.scale(direction, { factor: -lr }));
      ops.accumulate(m, ops.scale(ops.sub(g, m), { factor: 0.01 }));
    }
    this.stepsDone++;
  }
  exportState() {
    return { step: this.stepsDone, tensors: new Map(this.moments) };
  }
  dispose(): void {
    this.moments.dispose();
  }
}

describe.each([
  ["gains in every block", GainTuning],
  ["a soft prompt", PromptTuning],
  ["a prefix of keys and values in every block", PrefixTuning],
  ["an edit of every block's output", Reft],
  ["a block beside the model", GatedBlock],
  ["a recurrence beside the model", RunningSum],
  ["a network that attends to the model's keys and values", AttentionReader],
] as const)("%s", (_, Own) => {
  it.each([false, true])(
    "is trained, evaluated and sampled (checkpointing: %s)",
    async (gradientCheckpointing) => {
      const device = new CpuDevice();
      using decoder = randomDecoder(device, config);
      const resting = device.memory.liveBytes;
      {
        using adapter = new Own(decoder);
        using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.05, gradientCheckpointing });
        const batch = drawBatch(new TestRandom(4), config);
        const first = await evaluateLoss(decoder, adapter, [batch]);
        for (let step = 0; step < 10; step++) await trainer.step(batch);
        expect(await evaluateLoss(decoder, adapter, [batch])).toBeLessThan(first - 0.01);
        // With caches it generates what reading the whole text again for each token gives.
        const prompt = [0, 1, 2, 3, 5, 6];
        const wanted = [...prompt];
        for (let n = 0; n < 4; n++) {
          using next = device.scope(() => {
            const tokens = { inputIds: wanted, batchSize: 1, length: wanted.length, attentionMask: null };
            const y = residualStream(decoder, adapter, decoder.prepare(tokens));
            const last = device.ops.slice(y, { axis: 1, start: wanted.length - 1, count: 1 });
            return device.ops.argmax(decoder.logits(device.ops, last));
          });
          wanted.push((await next.read())[0]);
        }
        const texts = await generateBatch(decoder, adapter, [prompt, prompt.slice(2)], { maxTokens: 4 });
        expect(texts[0]).toEqual(wanted.slice(prompt.length));
        expect(texts[1]).toEqual(await generate(decoder, adapter, prompt.slice(2), { maxTokens: 4 }));
      }
      expect(device.memory.liveBytes).toBe(resting);
    },
  );

  it("is planned with any optimizer: the peak of a plan is the peak of a step", async () => {
    using device = await openNodeWasm({ threads: 1 });
    for (const optimizer of [undefined, (parameters: ParamStore) => new Lion(parameters)]) {
      const options: StepOptions = {
        method: (decoder) => new Own(decoder),
        storage: { dtype: "f32" },
        memory: {},
        batchSize: 2,
        context: 16,
        ...(optimizer && { optimizer }),
      };
      const plan = planStep(config, { ...options, profile: device.profile });
      const run = measureStep(device, config, options);
      expect(plan).toEqual(run);
      expect(plan.effectiveDepth).toBe(Own === GatedBlock ? 4 : 3);
    }
  });
});

describe("an adapter of one's own", () => {
  it("is written with a configuration of its own, and not merged into weights", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    using adapter = new GatedBlock(decoder);
    const files = await encodeAdapter(adapter, { name: "tiny", config });
    expect(JSON.parse(files.config)).toEqual({
      method: "gated-block",
      base_model_name_or_path: "tiny",
      blocks: 1,
    });
    expect(() => mergeAdapter(config, [], adapter)).toThrow(/L-MERGE\].*a network beside the model/);
    using prompt = new PromptTuning(decoder);
    const usual = JSON.parse((await encodeAdapter(prompt, { name: "tiny", config })).config);
    expect(usual).toEqual({ method: "prompt", base_model_name_or_path: "tiny" });
    expect(() => parseAdapterConfig(usual, "here")).toThrow(
      /L-ADAPTER-CONFIG\] here: the method "prompt" is none of/,
    );
    expect(() => mergeAdapter(config, [], prompt)).toThrow(/L-MERGE\].*only LoRA and a trained head/);
  });
});

describe("a network that attends to the model's keys and values", () => {
  const batch = { inputIds: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], batchSize: 2, length: 5, attentionMask: null };

  it("gets those of all tokens where they go through a block in chunks, after a prefix and in a shared pass", async () => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, config);
    const resting = device.memory.liveBytes;
    {
      using reader = new AttentionReader(decoder);
      device.assign(reader.parameters.get("up"), new Random(8).normals(reader.parameters.get("up").size));
      for (const ids of [[], [3, 4, 5]]) {
        decoder.readPrefix(ids);
        const states = async (adapters: (Adapter | null)[], chunkTokens: number) => {
          const given = device.scope(() =>
            residualStreams(decoder, adapters, decoder.prepare(batch), { chunkTokens }),
          );
          const values = await Promise.all(given.map((y) => y.read()));
          for (const y of given) y.dispose();
          return values;
        };
        const [frozen, alone] = [...(await states([null], 5)), ...(await states([reader], 5))];
        expect(alone).not.toEqual(frozen);
        expect(await states([null, reader, reader], 2)).toEqual([frozen, alone, alone]);
      }
      decoder.readPrefix([]);
    }
    expect(device.memory.liveBytes).toBe(resting);
  });

  it("leaves nothing behind when it fails, and cannot be inside the blocks too", async () => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, config);
    using reader = new AttentionReader(decoder);
    const resting = device.memory.liveBytes;
    const run = (adapter: Adapter) =>
      device.scope(() => residualStreams(decoder, [adapter], decoder.prepare(batch)));
    const start: AttentionReader["start"] = (...inputs) => ({
      ...reader.start(...inputs),
      observeAttention(layer) {
        if (layer === 0) throw new Error("a mistake");
      },
    });
    const rest = { method: "own", parameters: reader.parameters, dispose() {}, [Symbol.dispose]() {} };
    expect(() => run({ ...rest, side: { cacheShapes: () => [], start } })).toThrow("a mistake");
    expect(device.memory.liveBytes).toBe(resting);
    const adaptBlock = (_: number, frozen: BlockWeights) => frozen;
    expect(() => run({ ...rest, side: reader, adaptBlock })).toThrow(
      /L-METHOD\].*"own" changes.*observeAttention/,
    );
  });
});

describe("an adapter of one's own that returns something else than a hidden state", () => {
  it("is told which part of it did", async () => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, config);
    const batch = drawBatch(new TestRandom(4), config);
    const resting = device.memory.liveBytes;
    {
      using adapter = new GatedBlock(decoder);
      const finish = (h: Tensor) => device.ops.sum(h, { axis: 1 });
      const side = { cacheShapes: () => [], start: () => ({ observe() {}, finish }) };
      const wrong: Adapter = { ...adapter, method: "wrong", side, dispose() {}, [Symbol.dispose]() {} };
      await expect(evaluateLoss(decoder, wrong, [batch])).rejects.toThrow(
        /L-METHOD\] finish of the adapter "wrong"/,
      );
      const embed = (_ops: Ops, _forward: Forward, h: Tensor) => device.ops.sum(h);
      await expect(evaluateLoss(decoder, { ...wrong, side: null, embed }, [batch])).rejects.toThrow(
        /L-METHOD\] embed of the adapter "wrong" returned .*wanted f32 \[/,
      );
    }
    expect(device.memory.liveBytes).toBe(resting);
  });
});

describe("the files of an adapter of one's own", () => {
  it("give another of its kind the same loss, and are refused for other methods, models and sizes", async () => {
    const folder = temporaryFolder();
    using decoder = randomDecoder(new CpuDevice(), config);
    const batch = drawBatch(new TestRandom(4), config);
    using trained = new GatedBlock(decoder);
    using trainer = new Trainer(decoder, trained, { learningRate: () => 0.05 });
    for (let step = 0; step < 3; step++) await trainer.step(batch);
    await saveAdapter(folder, trained, { name: "tiny", config });
    using restored = new GatedBlock(decoder);
    await restoreAdapter(folder, restored, config);
    expect(await evaluateLoss(decoder, restored, [batch])).toBe(
      await evaluateLoss(decoder, trained, [batch]),
    );

    using prompt = new PromptTuning(decoder);
    await expect(restoreAdapter(folder, prompt, config)).rejects.toThrow(/"gated-block", wanted "prompt"/);
    const other = { ...config, vocabSize: config.vocabSize + 1 };
    await expect(restoreAdapter(folder, restored, other)).rejects.toThrow(
      /L-ADAPTER-MODEL.*trained with tiny/,
    );
    restored.parameters.add("another", decoder.device.zeros([]));
    await expect(restoreAdapter(folder, restored, config)).rejects.toThrow(/L-TENSOR-MISSING.*"another"/);
  });
});

describe("an optimizer of one's own", () => {
  it("takes the place of AdamW, in checkpoints too, and refuses AdamW's options", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    using adapter = new GatedBlock(decoder);
    const batch = drawBatch(new TestRandom(4), config);
    const optimizer = (parameters: ParamStore) => new Lion(parameters);
    using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.01, optimizer });
    const first = await evaluateLoss(decoder, adapter, [batch]);
    for (let step = 0; step < 10; step++) await trainer.step(batch);
    expect(await evaluateLoss(decoder, adapter, [batch])).toBeLessThan(first - 0.01);
    expect(trainer.counters.updates).toBe(10);
    const saved = Object.keys(await readTrainerState(trainer, true)).filter((name) =>
      name.startsWith("optimizer."),
    );
    expect(saved).toEqual([...adapter.parameters].map(([name]) => `optimizer.m.${name}`));
    expect(
      () => new Trainer(decoder, adapter, { learningRate: () => 0.01, optimizer, weightDecay: 0.1 }),
    ).toThrow(/L-OPTION\] weightDecay/);
  });
});
