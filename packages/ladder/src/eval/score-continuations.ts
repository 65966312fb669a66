/**
 * Log-likelihoods of continuations. A prompt goes through the model once, however many continuations it has, and so does a
 * lead that precedes some of them. Adapters that leave the backbone's hidden states as they are share its passes.
 */
import { concatAll, logSoftmax, SidenetError, type Tensor } from "@sidenet/tensor";
import { ModelCache } from "../generation/model-cache.ts";
import type { Adapter } from "../methods/adapter.ts";
import { residualStreams, sharedPasses } from "../methods/residual-stream.ts";
import type { Decoder, TokenBatch } from "../model/decoder.ts";
import { notFinite } from "../not-finite.ts";

/** A prompt of at least one token, and what may follow it, at least one token each. */
export interface ScoringItem {
  readonly prompt: readonly number[];
  readonly continuations: readonly (readonly number[])[];
  /** What may follow the prompt and then `ScoringOptions.lead`. Default: nothing. */
  readonly afterLead?: readonly (readonly number[])[];
}

/** Log-likelihoods in nats, each the sum over the tokens of one continuation. */
export interface Scores {
  /** log p(continuation | prompt). */
  readonly continuations: readonly number[];
  /** log p(continuation | prompt, lead). */
  readonly afterLead: readonly number[];
}

/** How many prompts are scored at a time, what follows each, and who is notified. */
export interface ScoringOptions {
  /** Prompts that go through the model together. */
  readonly batchSize: number;
  /** Tokens that are read, not scored, between a prompt and its `afterLead` continuations. */
  readonly lead?: readonly number[];
  /** Bytes of prompt caches copied at a time, one copy per continuation; at least one copy is made. Default 256 MiB. */
  readonly copiedBytes?: number;
  /** Called with the number of prompts scored so far and in all. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** Bytes of logits held at a time. */
const LOGIT_BYTES = 2 ** 25;

/**
 * Scores each item's continuations with each adapter, in the order of the items; null is the backbone alone. Throws `L-CONTEXT`
 * for an item longer than the context and `L-DIVERGED` for likelihoods that are not finite.
 */
export async function scoreContinuations(
  decoder: Decoder,
  adapters: readonly (Adapter | null)[],
  items: readonly ScoringItem[],
  options: ScoringOptions,
): Promise<Scores[][]> {
  const { batchSize, lead = [], onProgress } = options;
  if (lead.length === 0 && items.some(({ afterLead = [] }) => afterLead.length > 0)) {
    throw new SidenetError(
      "L-OPTION",
      "continuations after a lead need a lead of at least one token. Give `lead`.",
    );
  }
  const scores = adapters.map((): Scores[] => new Array(items.length));
  let done = 0;
  for (const group of groupsOf(items, lead, batchSize, decoder.contextLimit)) {
    const own = group.map((i) => items[i]);
    const found: Scores[][] = [];
    for (const pass of sharedPasses(adapters)) found.push(...(await scoreGroup(decoder, pass, own, options)));
    for (const [a, adapter] of adapters.entries()) {
      for (const [g, i] of group.entries()) {
        scores[a][i] = found[a][g];
        const { continuations, afterLead } = found[a][g];
        if ([...continuations, ...afterLead].every(Number.isFinite)) continue;
        throw await notFinite("the likelihoods of answers are not finite", decoder, adapter);
      }
    }
    done += group.length;
    onProgress?.(done, items.length);
  }
  return scores;
}

/** Cache positions that an item needs after its prompt: the last token of a continuation is never read. */
function positionsAfterPrompt(
  { continuations, afterLead = [] }: ScoringItem,
  lead: readonly number[],
): number {
  const ends = [
    ...continuations.map((ids) => ids.length),
    ...afterLead.map((ids) => lead.length + ids.length),
  ];
  return Math.max(...ends) - 1;
}

/** Tokens of an item with its longest continuation, of which the last is never read. */
export const itemLength = (item: ScoringItem, lead: readonly number[] = []): number =>
  item.prompt.length + positionsAfterPrompt(item, lead);

/**
 * Indices of the items that go through the model together. Prompts of similar lengths share a group, since shorter ones are
 * padded; a group ends early where padding would push an item past the context `limit`.
 */
function groupsOf(
  items: readonly ScoringItem[],
  lead: readonly number[],
  batchSize: number,
  limit: number,
): number[][] {
  const order = [...items.keys()].sort((a, b) => items[a].prompt.length - items[b].prompt.length);
  const groups: number[][] = [];
  let longestRest = 0;
  for (const i of order) {
    const rest = positionsAfterPrompt(items[i], lead);
    const group = groups.at(-1);
    if (group && group.length < batchSize && items[i].prompt.length + longestRest <= limit) {
      group.push(i);
      longestRest = Math.max(longestRest, rest);
    } else {
      groups.push([i]);
      longestRest = rest;
    }
  }
  return groups;
}

/** The prompts of a group, left-padded: attention and RoPE see no difference. */
function promptBatch(items: readonly ScoringItem[], capacity: number, length: number) {
  const inputIds = new Int32Array(items.length * length);
  const attentionMask = new Uint8Array(items.length * capacity).fill(1);
  for (const [row, { prompt }] of items.entries()) {
    const padding = length - prompt.length;
    inputIds.set(prompt, row * length + padding);
    attentionMask.fill(0, row * capacity, row * capacity + padding);
  }
  return { inputIds, attentionMask };
}

/** Reads the group's prompts and scores what follows them, then reads the lead into the same caches and scores what follows that. */
async function scoreGroup(
  decoder: Decoder,
  adapters: readonly (Adapter | null)[],
  items: readonly ScoringItem[],
  { lead = [], copiedBytes = 2 ** 28 }: ScoringOptions,
): Promise<Scores[][]> {
  const length = Math.max(...items.map(({ prompt }) => prompt.length));
  const capacity = length + Math.max(...items.map((item) => positionsAfterPrompt(item, lead)));
  using caches = ModelCache.empty(decoder, adapters, items.length, capacity);
  const prompts = promptBatch(items, capacity, length);
  const prefixes = { decoder, adapters, caches, attentionMask: prompts.attentionMask, copiedBytes };
  const first = await readAndScore(
    prefixes,
    { inputIds: prompts.inputIds, length, offset: 0 },
    items.map(({ continuations }) => continuations),
  );
  const after = items.map(({ afterLead = [] }) => afterLead);
  if (after.every((continuations) => continuations.length === 0)) {
    return first.map((scores) => scores.map((continuations) => ({ continuations, afterLead: [] })));
  }
  const leads = Int32Array.from({ length: items.length * lead.length }, (_, i) => lead[i % lead.length]);
  const second = await readAndScore(
    prefixes,
    { inputIds: leads, length: lead.length, offset: length },
    after,
  );
  return first.map((scores, a) =>
    scores.map((continuations, i) => ({ continuations, afterLead: second[a][i] })),
  );
}

/** A token whose likelihood is wanted: the row of the states that predicts it, and the continuation it belongs to. */
interface Target {
  readonly state: number;
  readonly id: number;
  readonly item: number;
  readonly continuation: number;
}

/** A group of rows whose caches hold what was read so far. */
interface Prefixes {
  readonly decoder: Decoder;
  readonly adapters: readonly (Adapter | null)[];
  readonly caches: ModelCache;
  /** [items, capacity]; 0 hides the padding before a prompt. */
  readonly attentionMask: Uint8Array;
  readonly copiedBytes: number;
}

/** Tokens of every row of a group, [items, length], at cache positions `offset` and on. */
interface Segment {
  readonly inputIds: Int32Array;
  readonly length: number;
  readonly offset: number;
}

/** Reads a segment into the caches, then scores the continuations of each row, with each adapter. */
async function readAndScore(
  prefixes: Prefixes,
  { inputIds, length, offset }: Segment,
  continuations: readonly (readonly (readonly number[])[])[],
): Promise<number[][][]> {
  const { decoder, adapters, caches, attentionMask, copiedBytes } = prefixes;
  const { device } = decoder;
  const scores = adapters.map(() => continuations.map((own) => own.map(() => 0)));
  const add = async (statesOf: () => readonly Tensor[], targets: readonly Target[]) => {
    using logs = device.scope(() => {
      const found = statesOf().map((states, a) => logLikelihoods(decoder, adapters[a], states, targets));
      return concatAll(device.ops, found, 0);
    });
    const values = await logs.read();
    for (const [a, own] of scores.entries()) {
      const start = a * targets.length;
      for (const [i, { item, continuation }] of targets.entries())
        own[item][continuation] += values[start + i];
    }
  };
  const rows: Continued[] = continuations.flatMap((own, item) =>
    own.map((ids, continuation) => ({ ids, item, continuation })),
  );
  const batch: TokenBatch = { inputIds, batchSize: continuations.length, length, attentionMask };
  const lastStates = () =>
    device.scope(() => {
      const ys = residualStreams(decoder, adapters, decoder.prepare(batch, offset), caches);
      return ys.map((y) => device.ops.slice(y, { axis: 1, start: length - 1, count: 1 }));
    });
  await add(
    lastStates,
    rows.map(({ ids, item, continuation }) => ({ state: item, id: ids[0], item, continuation })),
  );
  // Continuations of one token are scored by now. Similar lengths go together: shorter ones are padded.
  const longer = rows.filter(({ ids }) => ids.length > 1).sort((a, b) => a.ids.length - b.ids.length);
  const count = Math.max(1, Math.floor(copiedBytes / caches.rowBytes));
  for (let start = 0; start < longer.length; start += count) {
    const some = longer.slice(start, start + count);
    const width = Math.max(...some.map(({ ids }) => ids.length)) - 1;
    const targets = some.flatMap(({ ids, ...of }, r) =>
      ids.slice(1).map((id, t) => ({ state: r * width + t, id, ...of })),
    );
    await add(() => restStates(prefixes, some, width, offset + length), targets);
  }
  return scores;
}

/** A continuation and the row of the group that it follows. */
interface Continued {
  readonly ids: readonly number[];
  readonly item: number;
  readonly continuation: number;
}

/**
 * States [rows,width,d] of each adapter after all tokens but the last of each continuation, of which the longest has `width`
 * such tokens. Each row gets a copy of its prefix's cache, which is filled up to `offset`.
 */
function restStates(
  { decoder, adapters, caches, attentionMask: masks }: Prefixes,
  rows: readonly Continued[],
  width: number,
  offset: number,
): Tensor[] {
  const { capacity } = caches;
  const taken = rows.map(({ item }) => item);
  return decoder.device.scope(() => {
    using own = caches.take(taken);
    const inputIds = new Int32Array(rows.length * width);
    for (const [r, { ids }] of rows.entries()) inputIds.set(ids.slice(0, -1), r * width);
    const attentionMask = new Uint8Array(rows.length * capacity);
    for (const [r, item] of taken.entries())
      attentionMask.set(masks.subarray(item * capacity, (item + 1) * capacity), r * capacity);
    const batch = { inputIds, batchSize: rows.length, length: width, attentionMask };
    return residualStreams(decoder, adapters, decoder.prepare(batch, offset), own);
  });
}

/** log p f32[targets] of each target's token after its row of states [B,T,d], from the logits of a few rows at a time. */
function logLikelihoods(
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
    const column = (of: (target: Target) => number) =>
      device.tensor(some.map(of), [some.length, 1], { dtype: "i32" });
    const part = device.scope(() => {
      const picked = ops.embedding(
        column(({ state }) => state),
        flat,
      );
      const logs = logSoftmax(ops, decoder.logits(ops, picked, adapter?.head ?? decoder.head));
      const own = ops.gatherAlong(
        ops.reshape(logs, { shape: [some.length, config.vocabSize] }),
        column(({ id }) => id),
      );
      return ops.reshape(own, { shape: [some.length] });
    });
    parts.push(part);
  }
  return concatAll(ops, parts, 0);
}
