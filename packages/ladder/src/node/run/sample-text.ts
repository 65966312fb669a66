/** What the model of a run makes of a record that it is not trained on. */

import { generate } from "../../generation/generate.ts";
import type { Adapter } from "../../methods/adapter.ts";
import type { Sample } from "../../training/metrics.ts";
import type { LoadedRun } from "./load.ts";

/** Tokens of a text that a sample is shown, so that it continues one instead of opening it. */
const SHOWN_TOKENS = 12;

/** How the shortest held-out record goes on, greedily: after its prompt or question, or after the first tokens of a text. */
export async function sampleText(
  run: LoadedRun,
  adapter: Adapter | null,
  maxTokens: number,
): Promise<Sample> {
  const { tokenizer, heldOut, decoder } = run;
  const record = heldOut.reduce((a, b) => (b.inputIds.length < a.inputIds.length ? b : a));
  const learnedFrom = record.labels.findIndex((label) => label !== -100);
  const isText = learnedFrom <= 1; // BOS at most is not learned
  // Not to its end, or there would be nothing to continue.
  const shown = isText ? Math.min(SHOWN_TOKENS, Math.max(0, record.inputIds.length - learnedFrom - 2)) : 0;
  const ids = record.inputIds.slice(0, Math.max(1, learnedFrom + shown));
  const room = decoder.contextLimit - ids.length + 1; // the last new token is never read
  const text = await generate(decoder, adapter, ids, {
    maxTokens: Math.min(maxTokens, room),
    stopIds: tokenizer.eosIds,
  });
  return { prompt: tokenizer.decode(ids), text: tokenizer.decode(text) };
}
