import { concatAll, SidenetError, type Tensor } from "@sidenet/tensor";
import { checkCounts } from "../check-counts.ts";
import type { Adapter } from "../methods/adapter.ts";
import { residualStream } from "../methods/residual-stream.ts";
import type { Decoder, TokenBatch } from "../model/decoder.ts";
import { notFinite } from "../not-finite.ts";
import type { KeptText } from "./kept-text.ts";
import { ModelCache } from "./model-cache.ts";

/** How the next token is chosen; `sampleLogits` in docs/ops.md is the exact definition. */
export interface Sampling {
  /** Divides the logits; 0 takes the most probable token. Default 1. */
  readonly temperature?: number;
  /** Keep this many of the most probable tokens; 0, the default, keeps all. */
  readonly topK?: number;
  /** Keep the most probable tokens up to this total probability. Default 1. */
  readonly topP?: number;
  /** Keep tokens of at least this share of the highest probability. Default 0. */
  readonly minP?: number;
  /** Above 1, tokens that occur in the prompt or the text so far become less probable. Default 1. */
  readonly repetitionPenalty?: number;
  /** Equal seeds give equal texts. Default 0. */
  readonly seed?: number;
}

/** When generation ends, and how tokens are chosen. */
export interface GenerateOptions {
  /** The largest number of new tokens. */
  readonly maxTokens: number;
  /** Token ids that end a text; they are not part of the result. */
  readonly stopIds?: readonly number[];
  /** Called with each new id and the index of its prompt. */
  readonly onToken?: (id: number, prompt: number) => void;
  /** Called after each new id; true ends the text of that prompt. */
  readonly isDone?: (prompt: number) => boolean;
  /** Absent or null, the default: greedy decoding, the most probable token each time. */
  readonly sampling?: Sampling | null;
  /** Keeps the keys and values of one prompt and its text for a later call. Absent or null: they are freed. */
  readonly kept?: KeptText | null;
  /** Stream of random numbers of the first prompt; each further prompt has the next one. Default 0. */
  readonly firstStream?: number;
}

/** The new ids after one prompt; see `generateBatch`. */
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
 * The new ids after each prompt, by the backbone and the adapter if there is one, with key-value caches. Each text is what it
 * would be in a batch of one: the left padding of shorter prompts is masked, positions count from the first token of a prompt, and
 * each prompt has its own stream of random numbers. Throws `L-PROMPT` for an empty prompt, `L-CONTEXT` when a prompt and the new tokens
 * exceed the context, `L-DIVERGED` when logits are not finite.
 */
export async function generateBatch(
  decoder: Decoder,
  adapter: Adapter | null,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions,
): Promise<number[][]> {
  if (prompts.length === 0) return [];
  checkPrompts(decoder, prompts, options);
  const { maxTokens, stopIds = [], onToken, isDone, sampling = null, firstStream = 0, kept = null } = options;
  const generated: number[][] = prompts.map(() => []);
  let batch = startBatch(decoder, adapter, prompts, maxTokens, kept);
  let held = batch.offset; // tokens in the caches
  let isWhole = false;
  try {
    for (let count = 0; count < maxTokens; count++) {
      const earlier = batch.rows.map((row) => [...prompts[row], ...generated[row]]);
      const ids = await nextIds(
        decoder,
        adapter,
        batch,
        earlier,
        sampling && { ...sampling, position: count, firstStream },
      );
      held = batch.offset + batch.length;
      const continuing: number[] = [];
      for (const [i, row] of batch.rows.entries()) {
        if (stopIds.includes(ids[i])) continue;
        generated[row].push(ids[i]);
        onToken?.(ids[i], row);
        if (!isDone?.(row)) continuing.push(i);
      }
      if (continuing.length === 0) break;
      batch = advance(batch, continuing, ids);
    }
    isWhole = true;
  } finally {
    if (!kept || !isWhole) batch.caches.dispose();
  }
  kept?.put([...prompts[0], ...generated[0]].slice(0, held), batch.caches);
  return generated;
}

/**
 * Throws `L-PROMPT` for a prompt without tokens, `L-CONTEXT` for one that leaves no space for the new tokens, `L-OPTION` for a
 * number of new tokens that is none, or more than the context holds.
 */
export function checkPrompts(
  { contextLimit: limit, contextText }: Decoder,
  prompts: readonly (readonly number[])[],
  { maxTokens, kept }: Pick<GenerateOptions, "maxTokens" | "kept">,
): void {
  if (kept && prompts.length !== 1) {
    throw new SidenetError(
      "L-OPTION",
      `the text of one prompt can be kept, and there are ${prompts.length}.`,
    );
  }
  checkCounts({ maxTokens }, 0);
  if (prompts.some((prompt) => prompt.length === 0)) {
    throw new SidenetError(
      "L-PROMPT",
      "a prompt has no tokens. Give it one at least, such as the token that begins a text.",
    );
  }
  const longest = Math.max(...prompts.map((prompt) => prompt.length));
  // The last new token is never an input.
  if (longest + maxTokens - 1 > limit) {
    throw new SidenetError(
      maxTokens > limit ? "L-OPTION" : "L-CONTEXT",
      `a prompt of ${longest} tokens and ${maxTokens} new ones exceed ${contextText}. Shorten the ` +
        "prompt or lower --max-tokens.",
    );
  }
}

/** The prompts whose texts have not ended. */
interface RunningBatch {
  /** The index of each row's prompt. */
  readonly rows: readonly number[];
  readonly caches: ModelCache;
  /** Number of padding tokens before each prompt. */
  readonly padding: readonly number[];
  /** The next input, [rows, length], whose first token is at position `offset`. */
  readonly input: Int32Array;
  readonly length: number;
  readonly offset: number;
}

function startBatch(
  decoder: Decoder,
  adapter: Adapter | null,
  prompts: readonly (readonly number[])[],
  maxTokens: number,
  kept: KeptText | null,
): RunningBatch {
  if (kept) {
    const [prompt] = prompts;
    const { caches, offset } = kept.take(decoder, adapter, prompt, prompt.length + maxTokens);
    const input = Int32Array.from(prompt.slice(offset));
    return { rows: [0], caches, padding: [0], input, length: input.length, offset };
  }
  const length = Math.max(...prompts.map((prompt) => prompt.length));
  const padding = prompts.map((prompt) => length - prompt.length);
  const input = new Int32Array(prompts.length * length);
  for (const [row, prompt] of prompts.entries()) input.set(prompt, row * length + padding[row]);
  return {
    rows: [...prompts.keys()],
    caches: ModelCache.empty(decoder, [adapter], prompts.length, length + maxTokens),
    padding,
    input,
    length,
    offset: 0,
  };
}

/** The batch reduced to the rows `continuing`, with the new `ids` as its next input. */
function advance(batch: RunningBatch, continuing: readonly number[], ids: ArrayLike<number>): RunningBatch {
  const all = continuing.length === batch.rows.length;
  const next = {
    ...batch,
    rows: continuing.map((i) => batch.rows[i]),
    padding: continuing.map((i) => batch.padding[i]),
    input: Int32Array.from(continuing, (i) => ids[i]),
    length: 1,
    offset: batch.offset + batch.length,
  };
  if (all) return next;
  const rest = { ...next, caches: batch.caches.take(continuing) };
  batch.caches.dispose();
  return rest;
}

/** The attention mask: 0 where a row is padded; null where no row is. */
function maskOf({ padding, caches: { capacity } }: RunningBatch): Uint8Array | null {
  if (padding.every((count) => count === 0)) return null;
  const mask = new Uint8Array(padding.length * capacity).fill(1);
  for (const [row, count] of padding.entries()) mask.fill(0, row * capacity, row * capacity + count);
  return mask;
}

/** Sampling of the token at a position of the new text. */
type PositionedSampling = Sampling & { readonly position: number; readonly firstStream: number };

/** The next id of each row. Throws `L-DIVERGED` where a logit is NaN or infinite. */
async function nextIds(
  decoder: Decoder,
  adapter: Adapter | null,
  batch: RunningBatch,
  earlierIds: readonly (readonly number[])[],
  sampling: PositionedSampling | null,
): Promise<ArrayLike<number>> {
  const { device } = decoder;
  const { rows, input, length, offset } = batch;
  const [next, sums] = device.scope(() => {
    const tokens = { inputIds: input, batchSize: rows.length, length, attentionMask: maskOf(batch) };
    const logits = lastLogits(decoder, adapter, tokens, offset, batch.caches);
    const sums = device.ops.sum(logits, { axis: 2 });
    if (sampling === null) return [device.ops.argmax(logits), sums];
    const ids = rows.map((row, i) => {
      const own = device.ops.slice(logits, { axis: 0, start: i, count: 1 });
      return sampleNext(own, sampling, earlierIds[i], sampling.firstStream + row);
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

/** The list of earlier ids is padded with -1 to a multiple of this, so that buffer sizes repeat. */
const RECENT_PADDING = 64;

/** One id i32[1], sampled from logits[1,1,V] with the random numbers of `stream`. */
function sampleNext(
  logits: Tensor,
  { repetitionPenalty = 1, position, firstStream: _, ...sampling }: PositionedSampling,
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

/** Logits f32[B,1,V] at the last position of a batch that starts at position `offset`. */
function lastLogits(
  decoder: Decoder,
  adapter: Adapter | null,
  batch: TokenBatch,
  offset: number,
  caches: ModelCache,
): Tensor {
  const { ops } = decoder.device;
  const y = residualStream(decoder, adapter, decoder.prepare(batch, offset), caches);
  return decoder.logits(
    ops,
    ops.slice(y, { axis: 1, start: batch.length - 1, count: 1 }),
    adapter?.head ?? undefined,
  );
}
