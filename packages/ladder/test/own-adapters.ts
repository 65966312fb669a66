// Methods of the user's own in each of the places that an adapter has.

import { type Ops, ParamStore, Random, repeat, type Shape, type Tensor, TestRandom } from "@sidenet/tensor";
import {
  type Adapter,
  type Attention,
  type BlockWeights,
  block,
  blockParameters,
  blockWeights,
  type Decoder,
  type Forward,
  kvLayers,
  kvShapes,
  type SideAdapter,
  type SidePass,
  type SidePassOptions,
} from "../src/index.ts";
import { drawModel } from "./tiny-model.ts";

export const config = { ...drawModel(new TestRandom(3)), numHiddenLayers: 3 };

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
export class GainTuning extends OwnAdapter implements Adapter {
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
export class PromptTuning extends OwnAdapter implements Adapter {
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
export class PrefixTuning extends OwnAdapter implements Adapter {
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
export class Reft extends OwnAdapter implements Adapter {
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
export class GatedBlock extends OwnAdapter implements Adapter, SideAdapter {
  readonly method = "gated-block";
  readonly side = this;
  readonly decoder: Decoder;
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
    this.effectiveDepth = decoder.config.numHiddenLayers + 1;
  }
  cacheShapes(capacity: number): readonly Shape[] {
    return kvShapes({ ...this.decoder.config, numLayers: 1 }, capacity);
  }
  start(ops: Ops, { context }: Forward, { cache }: SidePassOptions): SidePass {
    const weights = blockWeights(config, this.parameters);
    let read: Tensor | null = null;
    return {
      observe: (index, h) => {
        if (index === 0) read = block(ops, config, weights, h, context, cache ? kvLayers(cache)[0] : null);
      },
      finish: (h) => ops.add(h, ops.scaleBy(read!, this.parameters.get("gate"))),
    };
  }
  configJson(baseModel: string): object {
    return { method: this.method, base_model_name_or_path: baseModel, blocks: 1 };
  }
}

/** A network that attends to the keys and values of every block: y = H_L + Σ attention(D · H_i, k_i, v_i) · U. */
export class AttentionReader extends OwnAdapter implements Adapter, SideAdapter {
  readonly method = "attention-reader";
  readonly side = this;
  constructor(decoder: Decoder) {
    const { device } = decoder;
    const { hiddenSize: d, numAttentionHeads, headDim } = decoder.config;
    const width = numAttentionHeads * headDim;
    super(decoder, (store) => {
      store.add(
        "down",
        device.tensor(() => new Random(5).normals(width * d, d ** -0.5), [width, d]),
      );
      store.add("up", device.zeros([d, width]));
    });
  }
  cacheShapes(): readonly Shape[] {
    return []; // the keys and values of earlier positions are in the model's own cache
  }
  start(ops: Ops, { context }: Forward): SidePass {
    const { keyMask, segments, offset: queryOffset } = context;
    const { numAttentionHeads, headDim } = config;
    let [keys, values, sum]: (Tensor | null)[] = [null, null, null];
    return {
      observeAttention: (_, k, v) => {
        [keys, values] = [k, v];
      },
      observe: (index, h) => {
        if (index === 0) return;
        const earlier = sum;
        sum = h.device.scope(
          () => {
            const heads = [...h.shape.slice(0, 2), numAttentionHeads, headDim];
            const q = ops.reshape(ops.linear(h, this.parameters.get("down")), { shape: heads });
            const read = ops.attention(q, keys!, values!, keyMask, segments, { queryOffset });
            return earlier ? ops.add(earlier, read) : read;
          },
          { consume: earlier ? [earlier] : [] },
        );
      },
      finish: (h) => {
        const read = ops.reshape(sum!, { shape: [...h.shape.slice(0, 2), numAttentionHeads * headDim] });
        return ops.add(h, ops.linear(read, this.parameters.get("up")));
      },
    };
  }
}

/** A recurrence beside the model: y = H_L + gate · tanh(s), where s_t = s_{t-1} + gain · H_0 is all that it keeps of the past. */
export class RunningSum extends OwnAdapter implements Adapter, SideAdapter {
  readonly method = "running-sum";
  readonly side = this;
  readonly width: number;
  constructor(decoder: Decoder) {
    const { device } = decoder;
    const d = decoder.config.hiddenSize;
    super(decoder, (store) => {
      store.add(
        "gain",
        device.tensor(() => new Float32Array(d).fill(0.1), [d]),
      );
      store.add("gate", device.zeros([]));
    });
    this.width = d;
  }
  cacheShapes(): readonly Shape[] {
    return [[1, this.width]];
  }
  start(ops: Ops, { context, tokens }: Forward, { cache }: SidePassOptions): SidePass {
    let sum: Tensor | null = null;
    return {
      observe: (index, h) => {
        if (index > 0) return;
        const [B, T] = h.shape;
        const at = (b: number, t: number) =>
          tokens.attentionMask?.[b * (context.offset + T) + context.offset + t];
        const visible = Float32Array.from({ length: B * T }, (_, i) => at(Math.floor(i / T), i % T) ?? 1);
        const read = ops.mul(ops.mul(h, h.device.tensor(visible, [B, T, 1])), this.parameters.get("gain"));
        sum = ops.cumsum(read, { axis: 1 });
        const [state] = cache ?? [];
        if (!state) return;
        sum = ops.add(sum, state);
        ops.cacheWrite(state, ops.slice(sum, { axis: 1, start: T - 1, count: 1 }));
      },
      finish: (h) => ops.add(h, ops.scaleBy(ops.tanh(sum!), this.parameters.get("gate"))),
    };
  }
}
