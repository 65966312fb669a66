import { type Device, type Ops, type ParamStore, SidenetError, type Tensor } from "@sidenet/tensor";
import {
  type BlockContext,
  type BlockWeights,
  block,
  blockParameters,
  blockWeights,
  type LayerCache,
  type ParameterSpec,
} from "./block.ts";
import { contextLimit, type ModelConfig } from "./config.ts";
import { ropeTables } from "./rope-tables.ts";

/** One batch of token ids. */
export interface TokenBatch {
  /** Row by row, B · T of them. */
  readonly inputIds: ArrayLike<number>;
  readonly batchSize: number;
  /** [T] */
  readonly length: number;
  /** 1 = visible, B · T of them; null: all. */
  readonly attentionMask: ArrayLike<number> | null;
}

/** A batch on its device, with what all blocks share. Workspace of the surrounding scope. */
export interface Forward {
  /** i32[B,T] */
  readonly ids: Tensor;
  readonly context: BlockContext;
}

/** Every parameter of a checkpoint of this configuration, by its Hugging Face name. */
export function decoderParameters(config: ModelConfig): ParameterSpec[] {
  const { vocabSize: V, hiddenSize: d } = config;
  const layers = Array.from({ length: config.numHiddenLayers }, (_, i) =>
    blockParameters(config).map((spec) => ({ ...spec, name: `model.layers.${i}.${spec.name}` })),
  );
  const head: ParameterSpec[] = config.tieWordEmbeddings
    ? []
    : [{ name: "lm_head.weight", shape: [V, d], kind: "linear" }];
  return [
    { name: "model.embed_tokens.weight", shape: [V, d], kind: "linear" },
    ...layers.flat(),
    { name: "model.norm.weight", shape: [d], kind: "norm" },
    ...head,
  ];
}

/** A decoder of the Llama family. It holds weights and computes with whichever ops it is given; it records nothing. */
export class Decoder {
  readonly config: ModelConfig;
  readonly weights: ParamStore;
  readonly device: Device;
  readonly #layers: readonly BlockWeights[];

  /** Takes the store as its own. Throws `T-NAME` when a weight is missing. */
  constructor(config: ModelConfig, weights: ParamStore) {
    this.config = config;
    this.weights = weights;
    this.device = weights.device;
    this.#layers = Array.from({ length: config.numHiddenLayers }, (_, i) => {
      const name = (rest: string) => `model.layers.${i}.${rest}`;
      return blockWeights(
        config,
        (rest) => (weights.has(name(rest)) ? weights.get(name(rest)) : null),
        (rest) => weights.get(name(rest)),
      );
    });
  }

  get embeddings(): Tensor {
    return this.weights.get("model.embed_tokens.weight");
  }

  /** [V,d]; the embedding table when tied. */
  get lmHead(): Tensor {
    return this.config.tieWordEmbeddings ? this.embeddings : this.weights.get("lm_head.weight");
  }

  /**
   * Uploads a batch. `offset` is the position of its first token, past 0 when a cache holds what came before.
   * Throws `L-CONTEXT` when it is longer than the model's context, `L-TOKEN` for an id outside the vocabulary.
   */
  prepare(batch: TokenBatch, offset = 0): Forward {
    const { inputIds, batchSize: B, length: T, attentionMask } = batch;
    const { vocabSize, headDim, rope } = this.config;
    const limit = contextLimit(this.config);
    if (offset + T > limit) {
      throw new SidenetError(
        "L-CONTEXT",
        `${offset + T} tokens are more than the model's context of ${limit}. Shorten the text or cut it with --max-length.`,
      );
    }
    for (let i = 0; i < inputIds.length; i++) {
      if (!(inputIds[i] >= 0 && inputIds[i] < vocabSize)) {
        throw new SidenetError(
          "L-TOKEN",
          `token id ${inputIds[i]} at position ${i % T} of row ${Math.floor(i / T)} is outside the vocabulary of ` +
            `${vocabSize}. Does the tokenizer belong to this model?`,
        );
      }
    }
    const ids = this.device.tensor(inputIds, [B, T], { dtype: "i32", label: "token ids" });
    const keyMask =
      attentionMask && this.device.tensor(attentionMask, [B, T], { dtype: "u8", label: "attention mask" });
    return { ids, context: { rope: ropeTables(this.device, rope, headDim, offset, T), keyMask, offset } };
  }

  /** H_0: f32[B,T,d]; the residual stream stays f32 whatever the weights are. */
  embed(ops: Ops, { ids }: Forward): Tensor {
    const h = ops.embedding(ids, this.embeddings);
    return h.dtype === "f32" ? h : ops.cast(h, { to: "f32" });
  }

  /**
   * H_L, with `observe` shown every hidden state on the way: H_0, then the output of each block. A state is freed as soon
   * as the next one stands, unless the observer kept it.
   */
  hidden(
    ops: Ops,
    forward: Forward,
    options: { observe?: (index: number, h: Tensor) => void; cache?: readonly LayerCache[] } = {},
  ): Tensor {
    const { observe, cache } = options;
    let h = this.device.scope(() => this.embed(ops, forward), { label: "embedding" });
    observe?.(0, h);
    for (const [i, weights] of this.#layers.entries()) {
      h = this.device.scope(() => block(ops, this.config, weights, h, forward.context, cache?.[i] ?? null), {
        consume: [h],
        label: `layer ${i}`,
      });
      observe?.(i + 1, h);
    }
    return h;
  }

  /** The final norm: y f32[B,T,d] → f32[B,T,d]. */
  finalNorm(ops: Ops, y: Tensor): Tensor {
    return ops.rmsNorm(y, this.weights.get("model.norm.weight"), { eps: this.config.rmsNormEps });
  }

  /** logits f32[B,T,V] of the residual stream y[B,T,d]; holds all of them, so for few positions or small vocabularies. */
  logits(ops: Ops, y: Tensor): Tensor {
    return ops.linear(this.finalNorm(ops, y), this.lmHead);
  }

  /**
   * Mean negative log-likelihood of labels over the residual stream y[B,T,d], -100 ignored: f32[]. `targets` i32[B·T] are
   * labels shifted by one, as `shiftLabels` makes them. Never holds all logits.
   */
  loss(ops: Ops, y: Tensor, targets: Tensor): Tensor {
    const h = this.finalNorm(ops, y);
    return ops.lmHeadLoss(
      ops.reshape(h, { shape: [targets.size, this.config.hiddenSize] }),
      this.lmHead,
      targets,
    );
  }

  dispose(): void {
    this.weights.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Position t is scored against labels[t + 1]; the last of a row against nothing (-100). labels: B · T, row by row. */
export function shiftLabels(labels: ArrayLike<number>, batchSize: number, length: number): Int32Array {
  const targets = new Int32Array(batchSize * length).fill(-100);
  for (let b = 0; b < batchSize; b++) {
    for (let t = 0; t + 1 < length; t++) targets[b * length + t] = labels[b * length + t + 1];
  }
  return targets;
}
