/**
 * The transformer block of the Llama family (methods.md, 1), for backbones and side networks alike. A frozen backbone runs
 * it with the device's ops, a side network at its own sizes with a tape.
 */
import { type Ops, type ParamStore, sizeOf, type Tensor } from "@sidenet/tensor";
import { nf4Projection } from "./nf4-weight.ts";
import { floatProjection, type Projection, type WeightRange } from "./projection.ts";
import { type RopeTables, rotate } from "./rope-tables.ts";

/** Sizes and options of a block; those of a backbone come from its `config.json`. */
export interface BlockShape {
  /** [d] */
  readonly hiddenSize: number;
  /** [f] */
  readonly intermediateSize: number;
  /** [n_q] */
  readonly numAttentionHeads: number;
  /** [n_kv] */
  readonly numKeyValueHeads: number;
  /** [c]; hiddenSize need not be heads · headDim */
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly attentionBias: { readonly qkv: boolean; readonly o: boolean };
  readonly mlpBias: boolean;
  /** rmsNorm over headDim on q and k before rope. */
  readonly qkNorm: boolean;
}

/** Attention over the queries, keys and values of a block: the op of that name, or what an adapter puts in its place. */
export type Attention = (ops: Ops, ...inputs: Parameters<Ops["attention"]>) => Tensor;

/** The parts of one block: gains of norms [d], linear layers, attention. Norms of q and k are null where the family has none. */
export interface BlockWeights {
  readonly inputNorm: Tensor;
  readonly q: Projection;
  readonly k: Projection;
  readonly v: Projection;
  readonly o: Projection;
  readonly attention: Attention;
  readonly qNorm: Tensor | null;
  readonly kNorm: Tensor | null;
  readonly postNorm: Tensor;
  readonly gate: Projection;
  readonly up: Projection;
  readonly down: Projection;
  /** Replaces the block's output h[B,T,d], residual included, position by position; null: the block returns h. */
  readonly output: ((ops: Ops, h: Tensor) => Tensor) | null;
}

/** The key-value cache of one layer, [B,S,n_kv,c] each. */
export interface LayerCache {
  readonly k: Tensor;
  readonly v: Tensor;
}

/** The inputs that all blocks of one forward pass share. */
export interface BlockContext {
  readonly rope: RopeTables;
  /** u8[B,S], 1 = visible; null: all. */
  readonly keyMask: Tensor | null;
  /** i32[B,S]: a token attends only to keys of its own segment; null: each row is one sequence. */
  readonly segments: Tensor | null;
  /** Position of the first token: 0, or the length of the cache. */
  readonly offset: number;
}

/** Name and shape of one parameter in a checkpoint. */
export interface ParameterSpec {
  /** The Hugging Face name without the layer's prefix, such as "self_attn.q_proj.weight". */
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: "linear" | "bias" | "norm";
}

/** Number of elements of all parameters. */
export const parameterCount = (specs: readonly ParameterSpec[]): number =>
  specs.reduce((sum, { shape }) => sum + sizeOf(shape), 0);

/** The seven linear layers of a block: their Hugging Face names, by their names in `BlockWeights`. */
export const PROJECTIONS = {
  q: "self_attn.q_proj",
  k: "self_attn.k_proj",
  v: "self_attn.v_proj",
  o: "self_attn.o_proj",
  gate: "mlp.gate_proj",
  up: "mlp.up_proj",
  down: "mlp.down_proj",
} as const;
/** The name of a projection in `BlockWeights`. */
export type ProjectionName = keyof typeof PROJECTIONS;
export const PROJECTION_NAMES = Object.keys(PROJECTIONS) as ProjectionName[];

/** Every parameter of a block, by its Hugging Face name. */
export function blockParameters(shape: BlockShape): ParameterSpec[] {
  const { hiddenSize: d, intermediateSize: f, headDim: c } = shape;
  const query = shape.numAttentionHeads * c;
  const key = shape.numKeyValueHeads * c;
  const linear = (name: string, out: number, inn: number, bias: boolean): ParameterSpec[] => [
    { name: `${name}.weight`, shape: [out, inn], kind: "linear" },
    ...(bias ? [{ name: `${name}.bias`, shape: [out], kind: "bias" } as const] : []),
  ];
  const norm = (name: string, size: number): ParameterSpec => ({
    name: `${name}.weight`,
    shape: [size],
    kind: "norm",
  });
  const { qkv, o } = shape.attentionBias;
  return [
    norm("input_layernorm", d),
    ...linear(PROJECTIONS.q, query, d, qkv),
    ...linear(PROJECTIONS.k, key, d, qkv),
    ...linear(PROJECTIONS.v, key, d, qkv),
    ...linear(PROJECTIONS.o, d, query, o),
    ...(shape.qkNorm ? [norm("self_attn.q_norm", c), norm("self_attn.k_norm", c)] : []),
    norm("post_attention_layernorm", d),
    ...linear(PROJECTIONS.gate, f, d, shape.mlpBias),
    ...linear(PROJECTIONS.up, f, d, shape.mlpBias),
    ...linear(PROJECTIONS.down, d, f, shape.mlpBias),
  ];
}

/** A block's weights from a store, under their Hugging Face names after `prefix`. Throws `T-NAME` for a missing one. */
export function blockWeights(shape: BlockShape, store: ParamStore, prefix = ""): BlockWeights {
  const shapes = new Map(blockParameters(shape).map((spec) => [spec.name, spec.shape]));
  const projection = (name: string): Projection => {
    const bias = store.find(`${prefix}${name}.bias`);
    const [full, extents] = [`${prefix}${name}.weight`, shapes.get(`${name}.weight`)!];
    const quantized = nf4Projection(store, full, extents, bias);
    if (quantized) return quantized;
    return floatProjection(store.get(full), bias);
  };
  return {
    inputNorm: store.get(`${prefix}input_layernorm.weight`),
    q: projection(PROJECTIONS.q),
    k: projection(PROJECTIONS.k),
    v: projection(PROJECTIONS.v),
    o: projection(PROJECTIONS.o),
    attention: (ops, ...inputs) => ops.attention(...inputs),
    qNorm: store.find(`${prefix}self_attn.q_norm.weight`),
    kNorm: store.find(`${prefix}self_attn.k_norm.weight`),
    postNorm: store.get(`${prefix}post_attention_layernorm.weight`),
    gate: projection(PROJECTIONS.gate),
    up: projection(PROJECTIONS.up),
    down: projection(PROJECTIONS.down),
    output: null,
  };
}

/**
 * x + attention(norm(x)), then x + feed-forward(norm(x)): f32[B,T,d] → f32[B,T,d].
 *
 * With a cache, the keys and values of these positions are written to it first, and attention reads the whole cache. Each
 * half frees its intermediate tensors when it ends, unless a tape has saved them.
 */
export function block(
  ops: Ops,
  shape: BlockShape,
  weights: BlockWeights,
  x: Tensor,
  context: BlockContext,
  cache: LayerCache | null = null,
): Tensor {
  const { device } = x;
  return device.scope(() => {
    const h = device.scope(() => attentionHalf(ops, shape, weights, x, context, cache), {
      label: "attention",
    });
    return device.scope(() => feedForwardHalf(ops, shape, weights, h), { label: "feed-forward" });
  });
}

/**
 * `block` for ops that record nothing, over `chunkTokens` tokens of each row at a time: besides x, the result, and the keys
 * and values of the whole row, which a cache holds, no tensor is larger than a chunk. The result is that of `block`.
 */
export function blockInChunks(
  ops: Ops,
  shape: BlockShape,
  weights: BlockWeights,
  x: Tensor,
  { rope, keyMask, segments, offset }: BlockContext,
  chunkTokens: number,
): Tensor {
  const { device } = x;
  const [B, T, d] = x.shape;
  const positions = rope.cos.shape.length - 2; // the axis of the tables
  return device.scope(() => {
    const extents = [B, T, shape.numKeyValueHeads, shape.headDim];
    const cache = {
      k: device.zeros(extents, { label: "keys" }),
      v: device.zeros(extents, { label: "values" }),
    };
    const y = device.empty([B, T, 1, d], { label: "a block's output" });
    for (let start = 0; start < T; start += chunkTokens) {
      device.scope(() => {
        const count = Math.min(chunkTokens, T - start);
        const part = (table: Tensor, axis: number) => ops.slice(table, { axis, start, count });
        const context = {
          rope: { cos: part(rope.cos, positions), sin: part(rope.sin, positions) },
          keyMask,
          segments,
          offset: offset + start,
        };
        const rows = block(ops, shape, weights, part(x, 1), context, cache);
        ops.cacheWrite(y, ops.reshape(rows, { shape: [B, count, 1, d] }), { offset: start });
      });
    }
    return ops.reshape(y, { shape: [B, T, d] });
  });
}

/** Runs a function of tensors under gradient checkpointing: recorded as one op, and run again in the backward pass. */
export type RunLayer = (fn: (ops: Ops, ...inputs: Tensor[]) => Tensor, inputs: readonly Tensor[]) => Tensor;

/** `block` under gradient checkpointing: only its inputs are kept for the backward pass. */
export function recomputedBlock(
  run: RunLayer,
  shape: BlockShape,
  weights: BlockWeights,
  x: Tensor,
  { rope, keyMask, segments, offset }: BlockContext,
): Tensor {
  // Tensors that may be freed before the block is computed again must be inputs; weights live on.
  return run(
    (ops, handle, cos, sin, ...rest) => {
      const masks = {
        keyMask: keyMask ? rest.shift()! : null,
        segments: segments ? rest.shift()! : null,
      };
      return block(ops, shape, weights, handle, { rope: { cos, sin }, ...masks, offset });
    },
    [x, rope.cos, rope.sin, ...[keyMask, segments].filter((mask) => mask !== null)],
  );
}

function attentionHalf(
  ops: Ops,
  shape: BlockShape,
  weights: BlockWeights,
  x: Tensor,
  context: BlockContext,
  cache: LayerCache | null,
): Tensor {
  const { device } = x;
  const { numAttentionHeads, numKeyValueHeads, headDim, rmsNormEps: eps } = shape;
  const [B, T] = x.shape;
  const heads = (projection: Projection, h: Tensor, n: number) =>
    ops.reshape(projection(ops, h), { shape: [B, T, n, headDim] });
  const rotated = (projection: Projection, h: Tensor, n: number, norm: Tensor | null) => {
    const split = heads(projection, h, n);
    return rotate(ops, norm ? ops.rmsNorm(split, norm, { eps }) : split, context.rope);
  };
  const a = device.scope(() => {
    let [q, k, v] = device.scope(() => {
      const h = ops.rmsNorm(x, weights.inputNorm, { eps });
      return [
        rotated(weights.q, h, numAttentionHeads, weights.qNorm),
        rotated(weights.k, h, numKeyValueHeads, weights.kNorm),
        heads(weights.v, h, numKeyValueHeads),
      ];
    });
    if (cache) {
      ops.cacheWrite(cache.k, k, { offset: context.offset });
      ops.cacheWrite(cache.v, v, { offset: context.offset });
      ({ k, v } = cache);
    }
    const { keyMask, segments, offset: queryOffset } = context;
    return weights.attention(ops, q, k, v, keyMask, segments, { queryOffset });
  });
  return ops.add(x, weights.o(ops, ops.reshape(a, { shape: [B, T, numAttentionHeads * headDim] })));
}

function feedForwardHalf(ops: Ops, shape: BlockShape, weights: BlockWeights, x: Tensor): Tensor {
  const { device } = x;
  const { gate, up, down } = weights;
  const h = ops.rmsNorm(x, weights.postNorm, { eps: shape.rmsNormEps });
  const tokens = x.size / shape.hiddenSize;
  const parts = ops === device.ops ? partsOfFeatures(shape.intermediateSize, tokens) : [];
  let y: Tensor;
  if (parts.length > 1 && gate.rows && up.rows && down.columns) {
    const [rowsOfGate, rowsOfUp, columnsOfDown] = [gate.rows, up.rows, down.columns];
    const term = (range: WeightRange) =>
      columnsOfDown(
        ops,
        device.scope(() => ops.siluMul(rowsOfGate(ops, h, range), rowsOfUp(ops, h, range))),
        range,
      );
    const [first, ...others] = parts;
    y = device.scope(() => ops.add(x, term(first)));
    for (const range of others) device.scope(() => ops.accumulate(y, term(range)));
  } else {
    const gated = device.scope(() => ops.siluMul(gate(ops, h), up(ops, h)));
    y = ops.add(x, down(ops, gated));
  }
  return weights.output ? weights.output(ops, y) : y;
}

/** Gate, up and their product in f32 may take so many bytes together; past them, features are computed part by part. */
const FEATURE_BYTES = 96 * 2 ** 20;
const FEATURES_STEP = 128; // a block of the matmul kernels

/** About equal parts of the f features of a feed-forward layer, whose activations for so many tokens fit `FEATURE_BYTES`. */
function partsOfFeatures(f: number, tokens: number): WeightRange[] {
  if (f % 8 !== 0) return [];
  const most = Math.max(1, Math.floor(FEATURE_BYTES / (12 * tokens * FEATURES_STEP)));
  const steps = Math.ceil(f / FEATURES_STEP);
  const size = FEATURES_STEP * Math.ceil(steps / Math.ceil(steps / most));
  return Array.from({ length: Math.ceil(f / size) }, (_, i) => ({
    start: i * size,
    count: Math.min(size, f - i * size),
  }));
}
