import { SidenetError, type Tensor } from "@sidenet/tensor";
import type { Decoder, TokenBatch } from "./decoder.ts";
import { KvCache } from "./kv-cache.ts";
import { residualStream } from "./residual-stream.ts";
import type { SideNetwork } from "./side-network.ts";

export interface GenerateOptions {
  /** New tokens at most. */
  readonly maxTokens: number;
  /** Ids that end the text; they are not part of the result. */
  readonly stopIds?: readonly number[];
  /** Called with each new id as it comes. */
  readonly onToken?: (id: number) => void;
}

/**
 * Greedy continuation of one prompt by backbone and, if given, side network, each with its key-value cache.
 * Returns the new ids. Throws `L-PROMPT` for an empty prompt, `L-CONTEXT` when prompt and new tokens pass the context.
 */
export async function generateGreedy(
  decoder: Decoder,
  side: SideNetwork | null,
  promptIds: readonly number[],
  options: GenerateOptions,
): Promise<number[]> {
  const { maxTokens, stopIds = [], onToken } = options;
  const { device, config } = decoder;
  if (promptIds.length === 0) {
    throw new SidenetError(
      "L-PROMPT",
      "the prompt has no tokens, and this model has no begin-of-text token to start from.",
    );
  }
  const capacity = promptIds.length + maxTokens;
  using cache = new KvCache(device, config, config.numHiddenLayers, 1, capacity);
  using sideCache = side && new KvCache(device, side.shape, side.config.num_hidden_layers, 1, capacity);
  const generated: number[] = [];
  let input: readonly number[] = promptIds;
  let offset = 0;
  while (generated.length < maxTokens) {
    using next = device.scope(() => {
      const batch = { inputIds: input, batchSize: 1, length: input.length, attentionMask: null };
      return device.ops.argmax(lastLogits(decoder, side, batch, offset, { cache, sideCache }));
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

/** logits f32[B,1,V] of the last position of a batch that starts at `offset`. */
function lastLogits(
  decoder: Decoder,
  side: SideNetwork | null,
  batch: TokenBatch,
  offset: number,
  caches: { cache: KvCache; sideCache: KvCache | null },
): Tensor {
  const { ops } = decoder.device;
  const y = residualStream(decoder, side, decoder.prepare(batch, offset), caches);
  return decoder.logits(ops, ops.slice(y, { axis: 1, start: batch.length - 1, count: 1 }));
}
