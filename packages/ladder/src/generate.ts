import { SidenetError, type Tensor } from "@sidenet/tensor";
import type { Adapter } from "./adapter.ts";
import type { Decoder, TokenBatch } from "./decoder.ts";
import { KvCache } from "./kv-cache.ts";
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

export interface GenerateOptions {
  /** New tokens at most. */
  readonly maxTokens: number;
  /** Ids that end the text; they are not part of the result. */
  readonly stopIds?: readonly number[];
  /** Called with each new id as it comes. */
  readonly onToken?: (id: number) => void;
  /** Left out, the likeliest token is taken each time. */
  readonly sampling?: Sampling | null;
}

/**
 * Continuation of one prompt by backbone and, if given, adapter, with key-value caches.
 * Returns the new ids. Throws `L-PROMPT` for an empty prompt, `L-CONTEXT` when prompt and new tokens pass the context.
 */
export async function generate(
  decoder: Decoder,
  adapter: Adapter | null,
  promptIds: readonly number[],
  options: GenerateOptions,
): Promise<number[]> {
  const { maxTokens, stopIds = [], onToken, sampling = null } = options;
  const { device, config } = decoder;
  if (promptIds.length === 0) {
    throw new SidenetError(
      "L-PROMPT",
      "the prompt has no tokens, and this model has no begin-of-text token to start from.",
    );
  }
  const capacity = promptIds.length + maxTokens;
  using cache = new KvCache(device, config, config.numHiddenLayers, 1, capacity);
  const side = adapter?.side ?? null;
  using sideCache = side && new KvCache(device, side.shape, side.config.num_hidden_layers, 1, capacity);
  const generated: number[] = [];
  let input: readonly number[] = promptIds;
  let offset = 0;
  while (generated.length < maxTokens) {
    using next = device.scope(() => {
      const batch = { inputIds: input, batchSize: 1, length: input.length, attentionMask: null };
      const logits = lastLogits(decoder, adapter, batch, offset, { cache, sideCache });
      return sampling === null
        ? device.ops.argmax(logits)
        : sampleNext(logits, sampling, [...promptIds, ...generated], generated.length);
    });
    const id = await next.item();
    if (stopIds.includes(id)) break;
    generated.push(id);
    onToken?.(id);
    offset += input.length;
    input = [id];
  }
  return generated;
}

/** Recent ids are padded to a multiple of this with ids that are none, so that memory of few sizes is reused. */
const RECENT_PADDING = 64;

/** id i32[1] by the number `position` of the seed. */
function sampleNext(
  logits: Tensor,
  { repetitionPenalty = 1, ...sampling }: Sampling,
  earlierIds: readonly number[],
  position: number,
): Tensor {
  const { device } = logits;
  const row = device.ops.reshape(logits, { shape: [1, logits.size] });
  let recent: Tensor | null = null;
  if (repetitionPenalty !== 1) {
    const padded = new Int32Array(Math.ceil(earlierIds.length / RECENT_PADDING) * RECENT_PADDING).fill(-1);
    padded.set(earlierIds);
    recent = device.tensor(padded, [1, padded.length], { dtype: "i32" });
  }
  return device.ops.sampleLogits(row, recent, { ...sampling, repetitionPenalty, offset: position });
}

/** logits f32[B,1,V] of the last position of a batch that starts at `offset`. */
function lastLogits(
  decoder: Decoder,
  adapter: Adapter | null,
  batch: TokenBatch,
  offset: number,
  caches: { cache: KvCache; sideCache: KvCache | null },
): Tensor {
  const { ops } = decoder.device;
  const y = residualStream(decoder, adapter, decoder.prepare(batch, offset), caches);
  return decoder.logits(
    ops,
    ops.slice(y, { axis: 1, start: batch.length - 1, count: 1 }),
    adapter?.head ?? undefined,
  );
}
