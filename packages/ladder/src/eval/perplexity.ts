/** Perplexity over sliding windows: each token is scored once, with as much before it as the windows allow. */
import { concatAll } from "@sidenet/tensor";
import { makeBatch } from "../data/batches.ts";
import type { TokenRecord } from "../data/records.ts";
import { TextStream } from "../generation/text-stream.ts";
import type { Adapter } from "../methods/adapter.ts";
import { residualStreams, sharedPasses } from "../methods/residual-stream.ts";
import type { LabeledBatch } from "../model/batch-loss.ts";
import { type Decoder, shiftLabels } from "../model/decoder.ts";
import { notFinite } from "../not-finite.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
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

/**
 * The bytes of text that each window of `slidingWindows` scores. A character of several tokens counts where its last token is
 * scored: decoded by themselves, the tokens of a window would begin and end with replacement characters, and lose a leading space.
 */
export function scoredBytes(
  ids: readonly number[],
  context: number,
  stride: number,
  tokenizer: Tokenizer,
): number[] {
  const encoder = new TextEncoder();
  const stream = new TextStream(tokenizer, [], false);
  // BOS is not part of the text, and what follows it would no longer be decoded as the beginning of one.
  const completed = ids.map((id, i) =>
    i === 0 && id === tokenizer.bosId ? 0 : encoder.encode(stream.push(id)).length,
  );
  const counts: number[] = [];
  for (let done = 1, end = context; done < ids.length; done = end, end += stride) {
    counts.push(completed.slice(done, end).reduce((sum, count) => sum + count, 0));
  }
  return counts;
}

/** What the scored tokens of a window, or of a record, cost the model. */
export interface WindowScore {
  /** Negative log-likelihood in nats, summed. */
  readonly nats: number;
  /** Tokens that were scored. */
  readonly tokens: number;
}

/**
 * Scores of windows, or of records, in their order, with each adapter; null is the backbone alone. Those of similar lengths go
 * through the model together. Throws `L-DIVERGED` for one that is not finite.
 */
export async function scoreWindows(
  decoder: Decoder,
  adapters: readonly (Adapter | null)[],
  windows: readonly TokenRecord[],
  { batchSize, onProgress }: Pick<ScoringOptions, "batchSize" | "onProgress">,
): Promise<WindowScore[][]> {
  const scores = adapters.map((): WindowScore[] => new Array(windows.length));
  const lengthOf = (i: number) => windows[i].inputIds.length;
  const order = [...windows.keys()].sort((a, b) => lengthOf(a) - lengthOf(b));
  for (let start = 0; start < order.length; start += batchSize) {
    const group = order.slice(start, start + batchSize);
    const batch = makeBatch(
      group.map((i) => windows[i]),
      lengthOf(group.at(-1)!),
    );
    const found: WindowScore[][] = [];
    for (const pass of sharedPasses(adapters)) found.push(...(await scoreBatch(decoder, pass, batch)));
    for (const [a, own] of found.entries()) {
      for (const [g, i] of group.entries()) {
        if (!Number.isFinite(own[g].nats)) {
          const what = `the loss of ${windows[i].source} is not finite`;
          throw await notFinite(what, decoder, adapters[a]);
        }
        scores[a][i] = own[g];
      }
    }
    onProgress?.(start + group.length, windows.length);
  }
  return scores;
}

/** The rows go through the blocks together, and through the head one by one, for a sum of each. */
async function scoreBatch(
  decoder: Decoder,
  adapters: readonly (Adapter | null)[],
  batch: LabeledBatch,
): Promise<WindowScore[][]> {
  const { device } = decoder;
  const { ops } = device;
  const { batchSize, length } = batch;
  const targets = shiftLabels(batch.labels, batchSize, length);
  const targetsOf = (row: number) => targets.subarray(row * length, (row + 1) * length);
  using losses = device.scope(() => {
    const ys = residualStreams(decoder, adapters, decoder.prepare(batch));
    const all = adapters.flatMap((adapter, a) =>
      Array.from({ length: batchSize }, (_, row) =>
        device.scope(() => {
          const own = device.tensor(targetsOf(row), [length], { dtype: "i32" });
          const states = ops.slice(ys[a], { axis: 0, start: row, count: 1 });
          return ops.reshape(decoder.loss(ops, states, own, adapter?.head ?? decoder.head), { shape: [1] });
        }),
      ),
    );
    return concatAll(ops, all, 0);
  });
  const values = await losses.read();
  return adapters.map((_, a) =>
    Array.from({ length: batchSize }, (_, row) => {
      const tokens = targetsOf(row).filter((target) => target !== -100).length;
      return { nats: values[a * batchSize + row] * tokens, tokens };
    }),
  );
}
