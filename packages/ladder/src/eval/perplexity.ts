/** Perplexity over sliding windows: each token is scored once, with as much before it as the windows allow. */
import type { Adapter } from "../adapter.ts";
import type { LabeledBatch } from "../batch-loss.ts";
import { inBatches } from "../data/batches.ts";
import { type Decoder, shiftLabels } from "../decoder.ts";
import { notFinite } from "../not-finite.ts";
import type { TokenRecord } from "../records.ts";
import { residualStream } from "../residual-stream.ts";
import type { ScoringOptions } from "./score-continuations.ts";

/**
 * Windows of `context` tokens, each `stride` further on. A window scores what no earlier one did: all of the first but its
 * first token, which is predicted from nothing, then the last `stride` of each, so that a token has `context - stride`
 * tokens before it or more, where there are so many.
 */
export function slidingWindows(
  ids: readonly number[],
  context: number,
  stride: number,
  source: string,
): TokenRecord[] {
  const windows: TokenRecord[] = [];
  for (let start = 0, done = 1; done < ids.length; start += stride) {
    const end = Math.min(start + context, ids.length);
    const inputIds = ids.slice(start, end);
    const unscored = done - start;
    windows.push({ inputIds, labels: inputIds.map((id, i) => (i < unscored ? -100 : id)), source });
    done = end;
  }
  return windows;
}

/** What one window of text cost the model. */
export interface WindowScore {
  /** Negative log-likelihood in nats, summed. */
  readonly nats: number;
  /** Tokens that were scored. */
  readonly tokens: number;
}

/** Scores of windows, in their order. Throws `L-DIVERGED` for one that is not finite. */
export async function scoreWindows(
  decoder: Decoder,
  adapter: Adapter | null,
  windows: readonly TokenRecord[],
  { batchSize, onProgress }: Pick<ScoringOptions, "batchSize" | "onProgress">,
): Promise<WindowScore[]> {
  const scores: WindowScore[] = [];
  const longest = Math.max(...windows.map((window) => window.inputIds.length));
  for (const batch of inBatches(windows, batchSize, 0, longest)) {
    const found = await scoreBatch(decoder, adapter, batch);
    const bad = found.findIndex(({ nats }) => !Number.isFinite(nats));
    if (bad >= 0) {
      throw await notFinite(`the loss of window ${scores.length + bad + 1} is not finite`, decoder, adapter);
    }
    scores.push(...found);
    onProgress?.(scores.length, windows.length);
  }
  return scores;
}

/** The rows go through the blocks together, and through the head one by one, for a sum of each. */
async function scoreBatch(
  decoder: Decoder,
  adapter: Adapter | null,
  batch: LabeledBatch,
): Promise<WindowScore[]> {
  const { device } = decoder;
  const { batchSize, length } = batch;
  const targets = shiftLabels(batch.labels, batchSize, length);
  const losses = device.scope(() => {
    const y = residualStream(decoder, adapter, decoder.prepare(batch));
    return Array.from({ length: batchSize }, (_, row) => {
      const own = device.tensor(targets.subarray(row * length, (row + 1) * length), [length], {
        dtype: "i32",
      });
      const states = device.ops.slice(y, { axis: 0, start: row, count: 1 });
      return decoder.loss(device.ops, states, own, adapter?.head ?? decoder.head);
    });
  });
  const scores: WindowScore[] = [];
  for (const [row, loss] of losses.entries()) {
    const scored = targets.subarray(row * length, (row + 1) * length).filter((target) => target !== -100);
    scores.push({ nats: (await loss.item()) * scored.length, tokens: scored.length });
    loss.dispose();
  }
  return scores;
}
