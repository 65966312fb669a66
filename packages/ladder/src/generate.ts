import { concatAll, SidenetError, type Tensor } from "@sidenet/tensor";
import type { Adapter } from "./adapter.ts";
import { contextLimit } from "./config.ts";
import type { Decoder, TokenBatch } from "./decoder.ts";
import { ModelCache } from "./kv-cache.ts";
import { notFinite } from "./not-finite.ts";
import { residualStream } from "./residual-stream.ts";

/** How to choose among tokens; `sampleLogits` in docs/ops.md is the exact definition. */
export interface Sampling {
  /** 0 takes the likeliest; 1, the default, draws as the model says. */
  readonly temperature?: number;
  /** Keep this many of the likeliest tokens; 0, the default, keeps all. */
  readonly topK?: number;
  /** Keep the likeliest tokens until they have this share; the default is 1. */
  readonly topP?: number;
  /** Keep tokens of at least this share of the likeliest one's; the default is 0. */
  readonly minP?: number;
  /** Above 1 holds back tokens that the prompt or the text has already; the default is 1. */
  readonly repetitionPenalty?: number;
  /** The same seed gives the same text; 0 by default. */
  readonly seed?: number;
}

/** When texts end, and how their tokens are chosen. */
export interface GenerateOptions {
  /** New tokens at most. */
  readonly maxTokens: number;
  /** Ids that end the text; they are not part of the result. */
  readonly stopIds?: readonly number[];
  /** Called with each new id as it comes, and the number of its prompt. */
  readonly onToken?: (id: number, prompt: number) => void;
  /** Asked after each new id; true ends the text of that prompt. */
  readonly isDone?: (prompt: number) => boolean | Promise<boolean>;
  /** Left out, the likeliest token is taken each time. */
  readonly sampling?: Sampling | null;
}

/** Continuation of one prompt; as `generateBatch`. */
export async function generate(
  decoder: Decoder,
  adapter: Adapter | null,
  promptIds: readonly number[],
  options: GenerateOptions,
): Promise<number[]> {
  const [ids] = await generateBatch(decoder, adapter, [promptIds], options);
  return ids;
}

/**
 * Continuations of prompts by backbone and, if given, adapter, with key-value caches. Each is what it would be alone: shorter
 * prompts are padded on the left, which is hidden, and rope turns by distance only; draws come from a stream of the prompt's
 * number. Returns the new ids. Throws `L-PROMPT` for an empty prompt, `L-CONTEXT` when prompt and new tokens pass the context,
 * `L-DIVERGED` when logits are not finite.
 */
export async function generateBatch(
  decoder: Decoder,
  adapter: Adapter | null,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions,
): Promise<number[][]> {
  if (prompts.length === 0) return [];
  checkPrompts(decoder, prompts, options);
  const { maxTokens, stopIds = [], onToken, isDone, sampling = null } = options;
  const generated: number[][] = prompts.map(() => []);
  let batch = startBatch(decoder, adapter, prompts, maxTokens);
  try {
    for (let count = 0; count < maxTokens; count++) {
      const earlier = batch.rows.map((row) => [...prompts[row], ...generated[row]]);
      const ids = await nextIds(
        decoder,
        adapter,
        batch,
        earlier,
        sampling && { ...sampling, position: count },
      );
      const going: number[] = [];
      for (const [i, row] of batch.rows.entries()) {
        if (stopIds.includes(ids[i])) continue;
        generated[row].push(ids[i]);
        onToken?.(ids[i], row);
        if (!(await isDone?.(row))) going.push(i);
      }
      if (going.length === 0) break;
      batch = advance(batch, going, ids);
    }
  } finally {
    batch.caches.dispose();
  }
  return generated;
}

/**
 * Throws `L-PROMPT` for a prompt without tokens, `L-CONTEXT` for one that leaves no room for the new ones, `L-OPTION` for more
 * new ones than the context has.
 */
export function checkPrompts(
  { config }: Decoder,
  prompts: readonly (readonly number[])[],
  { maxTokens }: Pick<GenerateOptions, "maxTokens">,
): void {
  if (!Number.isInteger(maxTokens) || maxTokens < 0) {
    throw new SidenetError("L-CONTEXT", `maxTokens is ${maxTokens}, wanted a whole number of new tokens.`);
  }
  if (prompts.some((prompt) => prompt.length === 0)) {
    throw new SidenetError(
      "L-PROMPT",
      "the prompt has no tokens, and this model has no begin-of-text token to start from.",
    );
  }
  const longest = Math.max(...prompts.map((prompt) => prompt.length));
  const limit = contextLimit(config);
  // The last new token is never read.
  if (longest + maxTokens - 1 > limit) {
    throw new SidenetError(
      maxTokens > limit ? "L-OPTION" : "L-CONTEXT",
      `${longest} tokens of a prompt and ${maxTokens} new ones are more than the model's context of ${limit}. Shorten the ` +
        "prompt or lower --max-tokens.",
    );
  }
}

/** The prompts that still go on. */
interface RunningBatch {
  /** Number of each row's prompt. */
  readonly rows: readonly number[];
  readonly caches: ModelCache;
  /** Padding before each prompt. */
  readonly padding: readonly number[];
  /** What is read next: [rows, length], at position `offset`. */
  readonly input: Int32Array;
  readonly length: number;
  readonly offset: number;
}

function startBatch(
  decoder: Decoder,
  adapter: Adapter | null,
  prompts: readonly (readonly number[])[],
  maxTokens: number,
): RunningBatch {
  const length = Math.max(...prompts.map((prompt) => prompt.length));
  const padding = prompts.map((prompt) => length - prompt.length);
  const input = new Int32Array(prompts.length * length);
  for (const [row, prompt] of prompts.entries()) input.set(prompt, row * length + padding[row]);
  return {
    rows: [...prompts.keys()],
    caches: ModelCache.empty(decoder, adapter, prompts.length, length + maxTokens),
    padding,
    input,
    length,
    offset: 0,
  };
}

/** The batch after its rows `going` got the next of `ids`; the others are gone. */
function advance(batch: RunningBatch, going: readonly number[], ids: ArrayLike<number>): RunningBatch {
  const all = going.length === batch.rows.length;
  const next = {
    ...batch,
    rows: going.map((i) => batch.rows[i]),
    padding: going.map((i) => batch.padding[i]),
    input: Int32Array.from(going, (i) => ids[i]),
    length: 1,
    offset: batch.offset + batch.length,
  };
  if (all) return next;
  const rest = { ...next, caches: batch.caches.take(going) };
  batch.caches.dispose();
  return rest;
}

/** 0 where a row is padded; null where none is. */
function visible({ padding, caches: { capacity } }: RunningBatch): Uint8Array | null {
  if (padding.every((count) => count === 0)) return null;
  const mask = new Uint8Array(padding.length * capacity).fill(1);
  for (const [row, count] of padding.entries()) mask.fill(0, row * capacity, row * capacity + count);
  return mask;
}

/** One id for each row, the next of its text. Throws `L-DIVERGED` where a logit is NaN or infinite: no id would mean anything. */
async function nextIds(
  decoder: Decoder,
  adapter: Adapter | null,
  batch: RunningBatch,
  earlierIds: readonly (readonly number[])[],
  sampling: (Sampling & { readonly position: number }) | null,
): Promise<ArrayLike<number>> {
  const { device } = decoder;
  const { rows, input, length, offset } = batch;
  const [next, sums] = device.scope(() => {
    const tokens = { inputIds: input, batchSize: rows.length, length, attentionMask: visible(batch) };
    const logits = lastLogits(decoder, adapter, tokens, offset, batch.caches);
    const sums = device.ops.sum(logits, { axis: 2 });
    if (sampling === null) return [device.ops.argmax(logits), sums];
    const ids = rows.map((row, i) => {
      const own = device.ops.slice(logits, { axis: 0, start: i, count: 1 });
      return sampleNext(own, sampling, earlierIds[i], row);
    });
    return [concatAll(device.ops, ids, 0), sums];
  });
  try {
    const [ids, totals] = await Promise.all([next.read(), sums.read()]);
    const bad = rows.findIndex((_, i) => !Number.isFinite(totals[i]));
    if (bad < 0) return ids;
    const where = `after ${earlierIds[bad].length} tokens of prompt ${rows[bad] + 1}`;
    throw await notFinite(`the logits ${where} are not finite`, decoder, adapter);
  } finally {
    next.dispose();
    sums.dispose();
  }
}

/** Recent ids are padded to a multiple of this with ids that are none, so that memory of few sizes is reused. */
const RECENT_PADDING = 64;

/** id i32[1] of logits[1,1,V], drawn from a stream of its own. */
function sampleNext(
  logits: Tensor,
  { repetitionPenalty = 1, position, ...sampling }: Sampling & { readonly position: number },
  earlierIds: readonly number[],
  stream: number,
): Tensor {
  const { device } = logits;
  const row = device.ops.reshape(logits, { shape: [1, logits.size] });
  let recent: Tensor | null = null;
  if (repetitionPenalty !== 1) {
    const padded = new Int32Array(Math.ceil(earlierIds.length / RECENT_PADDING) * RECENT_PADDING).fill(-1);
    padded.set(earlierIds);
    recent = device.tensor(padded, [1, padded.length], { dtype: "i32" });
  }
  return device.ops.sampleLogits(row, recent, { ...sampling, repetitionPenalty, stream, offset: position });
}

/** logits f32[B,1,V] of the last position of a batch that starts at `offset`. */
function lastLogits(
  decoder: Decoder,
  adapter: Adapter | null,
  batch: TokenBatch,
  offset: number,
  { cache, sideCache }: ModelCache,
): Tensor {
  const { ops } = decoder.device;
  const y = residualStream(decoder, adapter, decoder.prepare(batch, offset), { cache, sideCache });
  return decoder.logits(
    ops,
    ops.slice(y, { axis: 1, start: batch.length - 1, count: 1 }),
    adapter?.head ?? undefined,
  );
}
