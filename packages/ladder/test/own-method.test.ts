// Methods of the user's own in the places that an adapter has, an optimizer of the user's own, and plans of both.

import type { Gradients, Optimizer, OptimizerStep } from "@sidenet/autograd";
import { CpuDevice, type Ops, ParamStore, Random, repeat, type Tensor, TestRandom } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import {
  type Adapter,
  type Attention,
  type BlockWeights,
  block,
  blockParameters,
  blockWeights,
  type CacheShape,
  type Decoder,
  encodeAdapter,
  evaluateLoss,
  type Forward,
  generate,
  measureStep,
  mergeAdapter,
  parseAdapterConfig,
  planStep,
  readTrainerState,
  residualStream,
  type SideAdapter,
  type SidePass,
  type SidePassOptions,
  type StepOptions,
  Trainer,
} from "../src/index.ts";
import { restoreAdapter, saveAdapter } from "../src/node/index.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";

const config = { ...drawModel(new TestRandom(3)), numHiddenLayers: 3 };

abstract class OwnAdapter {
  readonly parameters: ParamStore;
  constructor(decoder: Decoder, fill: (store: ParamStore) => void) {
    this.parameters = ParamStore.filled(decoder.device, "adapter", fill);
  }
  dispose(): void {
    this.parameters.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Trains the gains of every block's first norm, and nothing else. */
class GainTuning extends OwnAdapter implements Adapter {
  readonly method = "gains";
  constructor(decoder: Decoder) {
    const { device } = decoder;
    const { numHiddenLayers, hiddenSize } = decoder.config;
    const ones = () => new Float32Array(hiddenSize).fill(1);
    super(decoder, (store) => {
      for (let i = 0; i < numHiddenLayers; i++) store.add(`${i}`, device.tensor(ones, [hiddenSize]));
    });
  }
  adaptBlock(layer: number, frozen: BlockWeights): BlockWeights {
    return { ...frozen, inputNorm: this.parameters.get(`${layer}`) };
  }
}

/** Puts trained rows in place of the embeddings of the first tokens of the vocabulary. */
class PromptTuning extends OwnAdapter implements Adapter {
  readonly method = "prompt";
  readonly count = 4;
  constructor(decoder: Decoder) {
    const d = decoder.config.hiddenSize;
    super(decoder, (store) =>
      store.add(
        "prompt",
        decoder.device.tensor(() => new Random(2).normals(4 * d), [4, d]),
      ),
    );
  }
  embed(ops: Ops, { tokens, ids }: Forward, h: Tensor): Tensor {
    const { device } = h;
    const kept = Float32Array.from(tokens.inputIds, (id) => Number(id >= this.count));
    const frozen = device.ops.mul(h, device.tensor(kept, [...ids.shape, 1]));
    return ops.add(frozen, ops.embedding(ids, this.parameters.get("prompt"))); // 0 for all other ids
  }
}

/** Prefix tuning (Li and Liang 2021): trained keys and values, without a position, before those of the text in every block. */
class PrefixTuning extends OwnAdapter implements Adapter {
  readonly method = "prefix";
  readonly count = 3;
  constructor(decoder: Decoder) {
    const { device } = decoder;
    const { numHiddenLayers, numKeyValueHeads, headDim } = decoder.config;
    const shape = [1, 3, numKeyValueHeads, headDim];
    super(decoder, (store) => {
      for (let i = 0; i < numHiddenLayers; i++)
        for (const [stream, part] of ["k", "v"].entries()) {
          const values = () => new Random(4 + i, stream).normals(3 * numKeyValueHeads * headDim);
          store.add(`${i}.${part}`, device.tensor(values, shape));
        }
    });
  }
  adaptBlock(layer: number, frozen: BlockWeights): BlockWeights {
    const prefix = (ops: Ops, part: string, rows: number) =>
      repeat(ops, this.parameters.get(`${layer}.${part}`), 0, rows);
    const attention: Attention = (ops, q, k, v, keyMask, segments, attrs) =>
      frozen.attention(
        ops,
        q,
        ops.concat(prefix(ops, "k", q.shape[0]), k, { axis: 1 }),
        ops.concat(prefix(ops, "v", q.shape[0]), v, { axis: 1 }),
        keyMask && this.withPrefix(keyMask),
        segments,
        { queryOffset: (attrs?.queryOffset ?? 0) + this.count },
      );
    return { ...frozen, attention };
  }
  /** The mask [B,S] of keys with a visible prefix, [B,P+S]. */
  withPrefix(keyMask: Tensor): Tensor {
    const { device, shape } = keyMask;
    const ones = (rows: number, count: number) =>
      device.tensor(() => new Float32Array(rows * count).fill(1), [rows, count]);
    const own = device.ops.where(keyMask, ones(1, 1));
    return device.ops.equal(device.ops.concat(ones(shape[0], this.count), own, { axis: 1 }), ones(1, 1));
  }
}

/** LoReFT (Wu et al. 2024): edits the output of every block in a subspace of 2 dimensions, h + (h Wᵀ + b - h Rᵀ) R. */
class Reft extends OwnAdapter implements Adapter {
  readonly method = "loreft";
  constructor(decoder: Decoder) {
    const { device } = decoder;
    const { numHiddenLayers, hiddenSize: d } = decoder.config;
    super(decoder, (store) => {
      for (let i = 0; i < numHiddenLayers; i++) {
        store.add(`${i}.b`, device.zeros([2]));
        for (const [stream, part] of ["r", "w"].entries()) {
          const values = () => new Random(6 + i, stream).normals(2 * d, 0.1);
          store.add(`${i}.${part}`, device.tensor(values, [2, d]));
        }
      }
    });
  }
  adaptBlock(layer: number, frozen: BlockWeights): BlockWeights {
    const [r, w, b] = ["r", "w", "b"].map((name) => this.parameters.get(`${layer}.${name}`));
    const output = (ops: Ops, h: Tensor) =>
      ops.add(h, ops.linear(ops.sub(ops.linear(h, w, b), ops.linear(h, r)), ops.transpose(r)));
    return { ...frozen, output };
  }
}

/** One block beside the model, which reads H_0, and whose output is scaled by a gate. */
class GatedBlock extends OwnAdapter implements Adapter, SideAdapter {
  readonly method = "gated-block";
  readonly side = this;
  readonly decoder: Decoder;
  readonly cacheShape: CacheShape;
  readonly effectiveDepth: number;
  constructor(decoder: Decoder) {
    super(decoder, (store) => {
      for (const [i, { name, shape }] of blockParameters(config).entries()) {
        const values = () =>
          new Random(3, i).normals(
            shape.reduce((a, b) => a * b, 1),
            0.1,
          );
        store.add(name, decoder.device.tensor(values, shape));
      }
      store.add("gate", decoder.device.zeros([]));
    });
    this.decoder = decoder;
    this.cacheShape = { ...decoder.config, numLayers: 1 };
    this.effectiveDepth = decoder.config.numHiddenLayers + 1;
  }
  start(ops: Ops, { context }: Forward, { cache }: SidePassOptions): SidePass {
    const weights = blockWeights(config, this.parameters);
    let read: Tensor | null = null;
    return {
      observe: (index, h) => {
        if (index === 0) read = block(ops, config, weights, h, context, cache?.[0] ?? null);
      },
      finish: (h) => ops.add(h, ops.scaleBy(read!, this.parameters.get("gate"))),
    };
  }
  configJson(baseModel: string): object {
    return { method: this.method, base_model_name_or_path: baseModel, blocks: 1 };
  }
}

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
        expect(await generate(decoder, adapter, prompt, { maxTokens: 4 })).toEqual(
          wanted.slice(prompt.length),
        );
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

describe("an adapter of one's own that returns something else than a hidden state", () => {
  it("is told which part of it did", async () => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, config);
    const batch = drawBatch(new TestRandom(4), config);
    const resting = device.memory.liveBytes;
    {
      using adapter = new GatedBlock(decoder);
      const finish = (h: Tensor) => device.ops.sum(h, { axis: 1 });
      const side = { cacheShape: null, start: () => ({ observe() {}, finish }) };
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
