import {
  type Device,
  type Ops,
  type ParamStore,
  type Shape,
  SidenetError,
  type Tensor,
} from "@sidenet/tensor";
import {
  type BlockContext,
  type BlockWeights,
  block,
  blockInChunks,
  blockParameters,
  blockWeights,
  type LayerCache,
  type ParameterSpec,
  PROJECTIONS,
  type RunLayer,
  recomputedBlock,
} from "./block.ts";
import { contextLimit, type ModelConfig } from "./config.ts";
import {
  type Embedding,
  floatEmbedding,
  floatHead,
  type Head,
  type LossOptions,
  nf4Embedding,
  nf4Head,
} from "./head.ts";
import { denseMatrix, nf4Parts } from "./nf4-weight.ts";
import { checkPrefix, leftPadding, Prefix, refusePacked } from "./prefix.ts";
import { ropeTables } from "./rope-tables.ts";

/** One batch of token ids. */
export interface TokenBatch {
  /** B · T ids, row by row. */
  readonly inputIds: ArrayLike<number>;
  readonly batchSize: number;
  /** [T] */
  readonly length: number;
  /** B · T values, 1 for a visible key, or B · S values with a cache of S positions; null: all keys are visible. */
  readonly attentionMask: ArrayLike<number> | null;
  /** B · T ids of the sequences packed into a row; attention stays within an id. Absent or null: each row is one sequence. */
  readonly segments?: ArrayLike<number> | null;
}

/** A batch on the device. Its tensors belong to the surrounding scope. */
export interface Forward {
  readonly tokens: TokenBatch;
  /** i32[B,T] */
  readonly ids: Tensor;
  readonly context: BlockContext;
  /** u8[B,P+S], the mask of keys after a prefix of P tokens, which only the backbone sees; null: no prefix, or no mask. */
  readonly prefixMask: Tensor | null;
}

/** Tokens of a prefix that are read at a time. */
const PREFIX_CHUNK = 512;

export const EMBEDDINGS = "model.embed_tokens.weight";
export const LM_HEAD = "lm_head.weight";

/** The name of a block's parameter in a checkpoint, such as `layerName(0, "self_attn.q_proj.weight")`. */
export const layerName = (layer: number, rest: string): string => `model.layers.${layer}.${rest}`;

/** Every parameter of a checkpoint of this configuration, by its Hugging Face name. */
export function decoderParameters(config: ModelConfig): ParameterSpec[] {
  const { vocabSize: V, hiddenSize: d } = config;
  const layers = Array.from({ length: config.numHiddenLayers }, (_, i) =>
    blockParameters(config).map((spec) => ({ ...spec, name: layerName(i, spec.name) })),
  );
  const head: ParameterSpec[] = config.tieWordEmbeddings
    ? []
    : [{ name: LM_HEAD, shape: [V, d], kind: "linear" }];
  return [
    { name: EMBEDDINGS, shape: [V, d], kind: "linear" },
    ...layers.flat(),
    { name: "model.norm.weight", shape: [d], kind: "norm" },
    ...head,
  ];
}

/** Options of `Decoder.hidden`. */
export interface HiddenOptions {
  /** Called with every hidden state: H_0, then the output of each block. */
  readonly observe?: (index: number, h: Tensor) => void;
  readonly cache?: readonly LayerCache[] | null;
  /** Replaces H_0. */
  readonly embed?: ((h: Tensor) => Tensor) | null;
  /** Replaces the weights of a block, counted from 0. */
  readonly adaptBlock?: ((layer: number, frozen: BlockWeights) => BlockWeights) | null;
  /** Runs each recorded block under gradient checkpointing. */
  readonly runLayer?: RunLayer | null;
  /** Tokens of each row that go through a block at a time, for blocks that no tape records; null: all. */
  readonly chunkTokens?: number | null;
}

/** A decoder of the Llama family. It holds weights; its methods compute with the ops that they are given. */
export class Decoder {
  readonly config: ModelConfig;
  readonly weights: ParamStore;
  readonly device: Device;
  readonly head: Head;
  readonly #embedding: Embedding;
  readonly #layers: readonly BlockWeights[];
  readonly #shapes: ReadonlyMap<string, Shape>;
  #prefix: Prefix | null = null;

  /** Takes ownership of the store. Throws `T-NAME` when a weight is missing. */
  constructor(config: ModelConfig, weights: ParamStore) {
    this.config = config;
    this.weights = weights;
    this.device = weights.device;
    const shape = [config.vocabSize, config.hiddenSize];
    const quantized = (name: string) => nf4Parts(weights, name, shape[0] * shape[1]);
    const [table, head] = [quantized(EMBEDDINGS), quantized(this.#headName)];
    this.#embedding = table ? nf4Embedding(table, shape) : floatEmbedding(weights.get(EMBEDDINGS));
    this.head = head ? nf4Head(head, shape) : floatHead(this.headMatrix);
    this.#layers = Array.from({ length: config.numHiddenLayers }, (_, i) =>
      blockWeights(config, weights, layerName(i, "")),
    );
    this.#shapes = new Map(decoderParameters(config).map(({ name, shape }) => [name, shape]));
  }

  /** An f32 copy of a weight by its name in a checkpoint, NF4 or not, in the surrounding scope. Throws `T-NAME` for another name. */
  denseWeight(name: string): Tensor {
    return denseMatrix(this.weights, name, this.#shapes.get(name) ?? this.weights.get(name).shape);
  }

  /** Whether all linear layers of the blocks are in NF4. A quantized checkpoint may hold some of them in floats. */
  get isQuantized(): boolean {
    const inNf4 = (layer: number, name: string) =>
      this.weights.get(layerName(layer, `${name}.weight`)).dtype === "u8";
    return this.#layers.every((_, layer) => Object.values(PROJECTIONS).every((name) => inNf4(layer, name)));
  }

  get #headName(): string {
    return this.config.tieWordEmbeddings ? EMBEDDINGS : LM_HEAD;
  }

  /** The tensor of the head [V,d], which is the embedding table when tied; for a head in NF4, its codes. */
  get headMatrix(): Tensor {
    return this.weights.get(this.#headName);
  }

  /** The ids of the tokens that stand before every row; none unless `readPrefix` was called. */
  get prefixIds(): readonly number[] {
    return this.#prefix?.ids ?? [];
  }

  /** Tokens that a row may have: the model's context, less the prefix. */
  get contextLimit(): number {
    return contextLimit(this.config) - this.prefixIds.length;
  }

  /** "the model's context of 512", for error messages; with a prefix, what that leaves. */
  get contextText(): string {
    const { length } = this.prefixIds;
    const text = `the model's context of ${contextLimit(this.config)}`;
    return length === 0 ? text : `${text} less a prefix of ${length}`;
  }

  /**
   * Reads tokens that from now on stand before every row, in place of an earlier prefix; no ids: none do. They are read once,
   * by the weights as they are now: what changes the blocks later does not change the prefix.
   * Throws `L-CONTEXT` where they leave no space for a row, `L-TOKEN` for an id outside the vocabulary, and keeps the earlier one.
   */
  readPrefix(ids: readonly number[]): void {
    checkPrefix(ids, this.config);
    const [earlier, next] = [
      this.#prefix,
      ids.length === 0 ? null : new Prefix(this.device, this.config, ids),
    ];
    this.#prefix = null; // for the pass that reads the next one
    try {
      if (next) this.#read(next);
    } catch (error) {
      next?.dispose();
      this.#prefix = earlier;
      throw error;
    }
    this.#prefix = next;
    earlier?.dispose();
  }

  /** Fills the cache of a prefix, some tokens at a time. */
  #read({ ids, layers }: Prefix): void {
    for (let start = 0; start < ids.length; start += PREFIX_CHUNK) {
      const inputIds = ids.slice(start, start + PREFIX_CHUNK);
      const chunk = { inputIds, batchSize: 1, length: inputIds.length, attentionMask: null };
      this.device.scope(() => {
        this.hidden(this.device.ops, this.#upload(chunk, start, start - ids.length), { cache: layers });
      });
    }
  }

  /**
   * Uploads a batch. `offset` is the position of its first token: above 0 when a cache holds the tokens before it.
   * Throws `L-CONTEXT` when it is longer than the model's context, `L-TOKEN` for an id outside the vocabulary, and `L-OPTION`
   * for packed rows after a prefix.
   */
  prepare(batch: TokenBatch, offset = 0): Forward {
    const end = offset + batch.length;
    if (end > this.contextLimit) {
      throw new SidenetError(
        "L-CONTEXT",
        `${end} tokens are more than ${this.contextText}. Shorten the text or cut it with --max-length.`,
      );
    }
    if (this.#prefix && batch.segments) throw refusePacked();
    const padding = leftPadding(batch);
    const isPadded = padding.some((count) => count > 0);
    return this.#upload(batch, offset, isPadded ? padding.map((count) => offset - count) : offset);
  }

  /** `offset`: tokens in the cache before the batch; `position`: that of the first token, of each row where they differ. */
  #upload(batch: TokenBatch, offset: number, position: number | readonly number[]): Forward {
    const { inputIds, batchSize: B, length: T, attentionMask, segments = null } = batch;
    const { vocabSize, headDim, rope } = this.config;
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
      attentionMask &&
      this.device.tensor(attentionMask, [B, attentionMask.length / B], {
        dtype: "u8",
        label: "attention mask",
      });
    const ownSegments = segments && this.device.tensor(segments, [B, T], { dtype: "i32", label: "segments" });
    const tables = ropeTables(this.device, rope, headDim, position, T);
    const context = { rope: tables, keyMask, segments: ownSegments, offset };
    return { tokens: batch, ids, context, prefixMask: this.#prefix?.keyMask(batch) ?? null };
  }

  /** H_0: f32[B,T,d]. The residual stream is f32, whatever the dtype of the weights. */
  embed(ops: Ops, { ids }: Forward): Tensor {
    return this.#embedding(ops, ids);
  }

  /** H_L: f32[B,T,d]. Each hidden state is freed as soon as the next one is computed, unless `observe` retained it. */
  hidden(ops: Ops, forward: Forward, options: HiddenOptions = {}): Tensor {
    const { observe, cache, embed } = options;
    const { prefixMask } = forward;
    const context = this.#prefix ? { ...forward.context, keyMask: prefixMask } : forward.context;
    const own = () => this.embed(ops, forward);
    let h = this.device.scope(() => (embed ? embed(own()) : own()), { label: "embedding" });
    observe?.(0, h);
    for (let i = 0; i < this.#layers.length; i++) {
      h = this.device.scope(() => this.#layer(ops, i, h, context, cache?.[i] ?? null, options), {
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

  /** Logits f32[B,T,V] of the residual stream y[B,T,d]. It holds all of them: for few positions or small vocabularies. */
  logits(ops: Ops, y: Tensor, head: Head = this.head): Tensor {
    return head.logits(ops, this.finalNorm(ops, y));
  }

  /**
   * Mean negative log-likelihood f32[] over the residual stream y[B,T,d]. `targets` i32[B·T] are labels shifted by one, as
   * `shiftLabels` makes them; -100 is ignored. It never holds all logits.
   */
  loss(ops: Ops, y: Tensor, targets: Tensor, head: Head = this.head, options: LossOptions = {}): Tensor {
    const h = this.finalNorm(ops, y);
    return head.loss(
      ops,
      ops.reshape(h, { shape: [targets.size, this.config.hiddenSize] }),
      targets,
      options,
    );
  }

  #layer(
    ops: Ops,
    layer: number,
    h: Tensor,
    context: BlockContext,
    cache: LayerCache | null,
    options: HiddenOptions,
  ): Tensor {
    const { adaptBlock, runLayer, chunkTokens } = options;
    const own = this.#layers[layer];
    const frozen = this.#prefix?.before(own, layer) ?? own;
    const weights = adaptBlock?.(layer, frozen) ?? frozen;
    if (runLayer) return recomputedBlock(runLayer, this.config, weights, h, context);
    if (chunkTokens != null && cache === null && h.shape[1] > chunkTokens) {
      return blockInChunks(ops, this.config, weights, h, context, chunkTokens);
    }
    return block(ops, this.config, weights, h, context, cache);
  }

  /** Frees the weights and the prefix. */
  dispose(): void {
    this.#prefix?.dispose();
    this.weights.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Targets of B · T positions, row by row: position t is scored against labels[t + 1], the last of a row against nothing
 * (-100). Throws `L-LABELS` for another number of labels.
 */
export function shiftLabels(labels: ArrayLike<number>, batchSize: number, length: number): Int32Array {
  if (labels.length !== batchSize * length) {
    throw new SidenetError(
      "L-LABELS",
      `there are ${labels.length} labels for ${batchSize} rows of ${length} tokens. Wanted one for each token, -100 where it is not scored.`,
    );
  }
  const targets = new Int32Array(batchSize * length).fill(-100);
  for (let b = 0; b < batchSize; b++) {
    for (let t = 0; t + 1 < length; t++) targets[b * length + t] = labels[b * length + t + 1];
  }
  return targets;
}
