/** Log-likelihoods of continuations. A prompt goes through the model once, however many continuations it has. */
import { concatAll, type Tensor } from "@sidenet/tensor";
import type { Adapter } from "../adapter.ts";
import type { Decoder } from "../decoder.ts";
import { ModelCache } from "../kv-cache.ts";
import { notFinite } from "../not-finite.ts";
import { residualStream } from "../residual-stream.ts";

/** A prompt of at least one token, and what may follow, of at least one token each. */
export interface ScoringItem {
  readonly prompt: readonly number[];
  readonly continuations: readonly (readonly number[])[];
}

/** log p(continuation | prompt) in nats, the sum over its tokens. */
export type Scores = readonly number[];

/** How many prompts are scored at a time, and who is told. */
export interface ScoringOptions {
  /** Prompts that go through together. */
  readonly batchSize: number;
  /** Copies of prompts' caches that exist at a time, one for each continuation, unless one alone is larger. Default 256 MiB. */
  readonly copiedBytes?: number;
  /** Called with the continuations that are scored, and all there are. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** Logits that exist at a time. */
const LOGIT_BYTES = 2 ** 25;

/**
 * Scores of each item's continuations, in the order of the items. Throws `L-CONTEXT` for what is longer than the context,
 * `L-DIVERGED` for likelihoods that are not finite.
 */
export async function scoreContinuations(
  decoder: Decoder,
  adapter: Adapter | null,
  items: readonly ScoringItem[],
  { batchSize, copiedBytes = 2 ** 28, onProgress }: ScoringOptions,
): Promise<Scores[]> {
  const scores: Scores[] = items.map(() => []);
  // Prompts of like lengths go together: shorter ones are padded.
  const order = [...items.keys()].sort((a, b) => items[a].prompt.length - items[b].prompt.length);
  for (let start = 0; start < order.length; start += batchSize) {
    const group = order.slice(start, start + batchSize);
    const found = await scoreGroup(
      decoder,
      adapter,
      group.map((i) => items[i]),
      copiedBytes,
    );
    for (const [g, i] of group.entries()) {
      scores[i] = found[g];
      if (found[g].every(Number.isFinite)) continue;
      throw await notFinite("the likelihoods of answers are not finite", decoder, adapter);
    }
    onProgress?.(start + group.length, order.length);
  }
  return scores;
}

/** A token whose likelihood is asked for: where it is predicted, and of which continuation it is. */
interface Target {
  /** Row of a list of states. */
  readonly state: number;
  readonly id: number;
  readonly item: number;
  readonly continuation: number;
}

/** The prompts of a group, padded on the left: attention and rope see no difference. */
function prefixBatch(items: readonly ScoringItem[], capacity: number, length: number) {
  const inputIds = new Int32Array(items.length * length);
  const mask = new Uint8Array(items.length * capacity).fill(1);
  for (const [row, { prompt }] of items.entries()) {
    const padding = length - prompt.length;
    inputIds.set(prompt, row * length + padding);
    mask.fill(0, row * capacity, row * capacity + padding);
  }
  return { inputIds, batchSize: items.length, length, attentionMask: mask };
}

async function scoreGroup(
  decoder: Decoder,
  adapter: Adapter | null,
  items: readonly ScoringItem[],
  copiedBytes: number,
): Promise<Scores[]> {
  const { device } = decoder;
  const length = Math.max(...items.map(({ prompt }) => prompt.length));
  const longest = Math.max(...items.flatMap(({ continuations }) => continuations.map((ids) => ids.length)));
  const capacity = length + longest - 1;
  const batch = prefixBatch(items, capacity, length);
  using caches = ModelCache.empty(decoder, adapter, items.length, capacity);
  const scores = items.map(({ continuations }) => continuations.map(() => 0));
  const add = async (states: Tensor, targets: readonly Target[]) => {
    using nats = device.scope(() => negativeLogLikelihoods(decoder, adapter, states, targets));
    const values = await nats.read();
    for (const [i, { item, continuation }] of targets.entries()) scores[item][continuation] -= values[i];
  };
  using last = device.scope(() => {
    const y = residualStream(decoder, adapter, decoder.prepare(batch), caches);
    return device.ops.slice(y, { axis: 1, start: length - 1, count: 1 });
  });
  await add(last, firstTargets(items));
  // What is one token long is scored by now. Of like lengths together: shorter ones are padded.
  const rows: Continued[] = items
    .flatMap(({ continuations }, item) =>
      continuations.map((ids, continuation) => ({ ids, item, continuation })),
    )
    .filter(({ ids }) => ids.length > 1)
    .sort((a, b) => a.ids.length - b.ids.length);
  const count = Math.max(1, Math.floor(copiedBytes / caches.rowBytes));
  for (let start = 0; start < rows.length; start += count) {
    const some = rows.slice(start, start + count);
    using rest = restStates(decoder, adapter, some, { ...batch, caches });
    const width = rest.shape[1];
    const targets = some.flatMap(({ ids, ...of }, r) =>
      ids.slice(1).map((id, t) => ({ state: r * width + t, id, ...of })),
    );
    await add(rest, targets);
  }
  return scores;
}

/** A continuation of several tokens. */
interface Continued {
  readonly ids: readonly number[];
  readonly item: number;
  readonly continuation: number;
}

interface Prefixes {
  readonly caches: ModelCache;
  /** Of the prompts. */
  readonly length: number;
  readonly attentionMask: Uint8Array;
}

/** States [rows,T,d] after all tokens but the last of each continuation, T of the longest; each row has a copy of its prompt's cache. */
function restStates(
  decoder: Decoder,
  adapter: Adapter | null,
  rows: readonly Continued[],
  { caches, length, attentionMask: masks }: Prefixes,
): Tensor {
  const { capacity } = caches;
  const taken = rows.map(({ item }) => item);
  const width = Math.max(...rows.map(({ ids }) => ids.length)) - 1;
  return decoder.device.scope(() => {
    using own = caches.take(taken);
    const inputIds = new Int32Array(rows.length * width);
    for (const [r, { ids }] of rows.entries()) inputIds.set(ids.slice(0, -1), r * width);
    const attentionMask = new Uint8Array(rows.length * capacity);
    for (const [r, item] of taken.entries())
      attentionMask.set(masks.subarray(item * capacity, (item + 1) * capacity), r * capacity);
    const batch = { inputIds, batchSize: rows.length, length: width, attentionMask };
    return residualStream(decoder, adapter, decoder.prepare(batch, length), own);
  });
}

/** The first token of each continuation follows the prompt. */
const firstTargets = (items: readonly ScoringItem[]): Target[] =>
  items.flatMap(({ continuations }, item) =>
    continuations.map((ids, continuation) => ({ state: item, id: ids[0], item, continuation })),
  );

/** f32[targets] of states [B,T,d]: log Σ e^z - z[id], through logits of some rows at a time. */
function negativeLogLikelihoods(
  decoder: Decoder,
  adapter: Adapter | null,
  states: Tensor,
  targets: readonly Target[],
): Tensor {
  const { device, config } = decoder;
  const { ops } = device;
  const d = config.hiddenSize;
  const flat = ops.reshape(states, { shape: [states.size / d, d] });
  const rows = Math.max(1, Math.floor(LOGIT_BYTES / (4 * config.vocabSize)));
  const parts: Tensor[] = [];
  for (let start = 0; start < targets.length; start += rows) {
    const some = targets.slice(start, start + rows);
    const column = (values: readonly number[], shape: readonly number[]) =>
      device.tensor(values, shape, { dtype: "i32" });
    const part = device.scope(() => {
      const picked = ops.embedding(
        column(
          some.map((target) => target.state),
          [1, some.length],
        ),
        flat,
      );
      const logits = ops.reshape(decoder.logits(ops, picked, adapter?.head ?? undefined), {
        shape: [some.length, config.vocabSize],
      });
      const own = ops.gatherAlong(
        logits,
        column(
          some.map((target) => target.id),
          [some.length, 1],
        ),
        { axis: 1 },
      );
      const max = ops.max(logits, { axis: 1 });
      const shifted = ops.exp(ops.sub(logits, ops.reshape(max, { shape: [some.length, 1] })));
      const shift = ops.add(max, ops.log(ops.sum(shifted, { axis: 1 })));
      return ops.sub(
        ops.reshape(shift, { shape: [some.length] }),
        ops.reshape(own, { shape: [some.length] }),
      );
    });
    parts.push(part);
  }
  return concatAll(ops, parts, 0);
}
