/**
 * The choice of rows and columns for `init: "pruned"` (methods.md, 2, after [LST]): the residual channels, heads, pairs of
 * query and key dimensions, value dimensions and intermediate channels of the largest importance.
 */
import type { BlockShape, ProjectionName } from "../model/block.ts";

/** Measures of importance: L1 norm, or Fisher information. */
export const IMPORTANCES = ["l1", "fisher"] as const;
/** `l1`: Σ |w|. `fisher`: Σ g², with the gradients g of the loss on calibration batches. */
export type Importance = (typeof IMPORTANCES)[number];

/** Importance of the rows and of the columns of one matrix, each summed over the other axis. */
export interface MatrixImportance {
  readonly rows: ArrayLike<number>;
  readonly columns: ArrayLike<number>;
}

/** Importance of the rows and columns of the seven linear layers of one block. */
export type BlockImportance = Readonly<Record<ProjectionName, MatrixImportance>>;

/** For each index of the side network, an index of the backbone, or `NONE` where the backbone has no more. */
export type Choice = readonly number[];
export const NONE = -1;

/** The rows and columns of a backbone block that a side block takes. Residual channels are chosen once for all blocks. */
interface BlockChoice {
  /** Rows of q_proj and of its bias. */
  readonly query: Choice;
  /** Rows of k_proj. */
  readonly key: Choice;
  /** Rows of v_proj. */
  readonly value: Choice;
  /** Columns of o_proj. */
  readonly output: Choice;
  /** Dimensions of q and k within a head; the pairs that rope rotates stay together. */
  readonly headDims: Choice;
  /** Rows of gate_proj and up_proj, columns of down_proj. */
  readonly intermediate: Choice;
}

/** Indices of the `count` largest values, in ascending order, padded with `NONE`. Among equal values the lower index wins. */
export function largest(values: ArrayLike<number>, count: number): Choice {
  const order = Array.from({ length: values.length }, (_, i) => i).sort(
    (a, b) => values[b] - values[a] || a - b,
  );
  const kept = order.slice(0, count).sort((a, b) => a - b);
  return [...kept, ...Array.from({ length: count - kept.length }, () => NONE)];
}

const sum = (values: Iterable<number>): number => {
  let total = 0;
  for (const value of values) total += value;
  return total;
};

/** Sums values[start ..< start + count] over several vectors. */
const part = (vectors: readonly ArrayLike<number>[], start: number, count: number): number =>
  sum(vectors.map((vector) => sum(Array.from({ length: count }, (_, i) => vector[start + i]))));

/**
 * The residual channels of a side network of width `width`, by importance summed over the blocks that its layers start from.
 * It is one choice for all layers, since they share the residual stream.
 */
export function chooseChannels(blocks: readonly BlockImportance[], width: number): Choice {
  const channels = blocks.flatMap(({ q, k, v, o, gate, up, down }) => [
    ...[q, k, v, gate, up].map(({ columns }) => columns),
    ...[o, down].map(({ rows }) => rows),
  ]);
  const totals = Array.from({ length: channels[0].length }, (_, c) =>
    sum(channels.map((vector) => vector[c])),
  );
  return largest(totals, width);
}

/** Query heads that share a key-value head. */
interface Group {
  readonly key: number;
  readonly queries: readonly number[];
  readonly importance: number;
}

/** All candidate groups of `size` query heads that share a key-value head, the most important first. */
function groupsOf(from: BlockShape, { q, k, v, o }: BlockImportance, size: number): Group[] {
  const c = from.headDim;
  const perKey = from.numAttentionHeads / from.numKeyValueHeads;
  const groups: Group[] = [];
  for (let key = 0; key < from.numKeyValueHeads; key++) {
    const shared = part([k.rows, v.rows], key * c, c);
    const heads = Array.from({ length: perKey }, (_, i) => key * perKey + i)
      .map((head) => ({ head, importance: part([q.rows, o.columns], head * c, c) }))
      .sort((a, b) => b.importance - a.importance || a.head - b.head);
    for (let at = 0; at < perKey; at += size) {
      const members = heads.slice(at, at + size);
      const queries = members.map(({ head }) => head).sort((a, b) => a - b);
      groups.push({ key, queries, importance: shared + sum(members.map(({ importance }) => importance)) });
    }
  }
  return groups.sort((a, b) => b.importance - a.importance || a.queries[0] - b.queries[0]);
}

/** Pairs (i, i + c/2) of query and key dimensions: one choice for all heads, since q_norm and k_norm are shared by heads. */
function choosePairs(
  from: BlockShape,
  to: BlockShape,
  { q, k }: BlockImportance,
  groups: readonly Group[],
): Choice {
  const half = from.headDim / 2;
  const pair = (rows: ArrayLike<number>, head: number, i: number): number =>
    rows[head * from.headDim + i] + rows[head * from.headDim + i + half];
  const totals = Array.from({ length: half }, (_, i) =>
    sum(
      groups.map(
        ({ key, queries }) => pair(k.rows, key, i) + sum(queries.map((head) => pair(q.rows, head, i))),
      ),
    ),
  );
  const pairs = largest(totals, to.headDim / 2);
  return [...pairs, ...pairs.map((i) => (i === NONE ? NONE : i + half))];
}

function chooseValues(
  from: BlockShape,
  to: BlockShape,
  { v, o }: BlockImportance,
  groups: readonly Group[],
): Choice {
  const c = from.headDim;
  const totals = Array.from({ length: c }, (_, i) =>
    sum(
      groups.map(
        ({ key, queries }) => v.rows[key * c + i] + sum(queries.map((head) => o.columns[head * c + i])),
      ),
    ),
  );
  return largest(totals, to.headDim);
}

/**
 * The rows and columns that a side block of shape `to` takes of a block of shape `from`. Heads are chosen in groups, of as many
 * query heads per key-value head as the side network has. Dimensions keep their order, and so rope's frequencies do.
 */
export function chooseBlock(from: BlockShape, to: BlockShape, importance: BlockImportance): BlockChoice {
  const perKey = to.numAttentionHeads / to.numKeyValueHeads;
  const all = groupsOf(from, importance, perKey);
  const groups = all.slice(0, to.numKeyValueHeads).sort((a, b) => a.queries[0] - b.queries[0]);
  const headDims = choosePairs(from, to, importance, groups);
  const valueDims = chooseValues(from, to, importance, groups);
  const at = (head: number | undefined, dims: Choice): Choice =>
    dims.map((i) => (head === undefined || i === NONE ? NONE : head * from.headDim + i));
  const keyHeads = Array.from({ length: to.numKeyValueHeads }, (_, g) => groups[g]?.key);
  const queryHeads = Array.from({ length: to.numAttentionHeads }, (_, h) => {
    return groups[Math.floor(h / perKey)]?.queries[h % perKey];
  });
  const { gate, up, down } = importance;
  const channels = Array.from({ length: from.intermediateSize }, (_, i) =>
    sum([gate.rows[i], up.rows[i], down.columns[i]]),
  );
  return {
    query: queryHeads.flatMap((head) => at(head, headDims)),
    key: keyHeads.flatMap((head) => at(head, headDims)),
    value: keyHeads.flatMap((head) => at(head, valueDims)),
    output: queryHeads.flatMap((head) => at(head, valueDims)),
    headDims,
    intermediate: largest(channels, to.intermediateSize),
  };
}

/** The choice along each axis of a block's parameter, given by its Hugging Face name. */
export function axesOf(name: string, channels: Choice, block: BlockChoice): readonly Choice[] {
  const { query, key, value, output, headDims, intermediate } = block;
  const [, module, kind] = /^(?:self_attn\.|mlp\.)?(\w+)\.(weight|bias)$/.exec(name)!;
  const [rows, columns] = (
    {
      input_layernorm: [channels],
      post_attention_layernorm: [channels],
      q_norm: [headDims],
      k_norm: [headDims],
      q_proj: [query, channels],
      k_proj: [key, channels],
      v_proj: [value, channels],
      o_proj: [channels, output],
      gate_proj: [intermediate, channels],
      up_proj: [intermediate, channels],
      down_proj: [channels, intermediate],
    } as Record<string, Choice[]>
  )[module];
  return kind === "bias" || columns === undefined ? [rows] : [rows, columns];
}

/** values[axes] of a tensor whose last axis has `inner` elements; `fallback` has the result's shape and its values for `NONE`. */
export function pick(
  values: ArrayLike<number>,
  inner: number,
  axes: readonly Choice[],
  fallback: Float32Array,
): Float32Array {
  const picked = fallback.slice();
  const [rows, columns] = axes.length === 2 ? axes : [[0], axes[0]];
  for (const [r, row] of rows.entries()) {
    if (row === NONE) continue;
    for (const [c, column] of columns.entries()) {
      if (column !== NONE) picked[r * columns.length + c] = values[row * inner + column];
    }
  }
  return picked;
}
