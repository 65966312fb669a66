/** Generation as text: streamed, and ended by stop strings. */
import type { Adapter } from "../methods/adapter.ts";
import type { Decoder } from "../model/decoder.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import { type GenerateOptions, generateBatch } from "./generate.ts";
import { StopMatcher, TextStream } from "./text-stream.ts";

/** `GenerateOptions` in terms of text instead of token ids. */
export interface GenerateTextOptions extends Omit<GenerateOptions, "onToken" | "isDone" | "stopIds"> {
  /** Stop strings: each ends a continuation and is not part of it. */
  readonly stop?: readonly string[];
  /** Called with each piece of final text and the index of its prompt. */
  readonly onText?: (text: string, prompt: number) => void;
  /** When it is aborted, all continuations end with their next token, and keep what they have. */
  readonly signal?: AbortSignal;
}

/** Why a continuation ended. */
export type StopReason = "end of text" | "stop string" | "max tokens" | "interrupted";

/** The continuation of one prompt, and why it ended. */
export interface Continuation {
  readonly text: string;
  /** All new ids, those of a stop string included. */
  readonly ids: readonly number[];
  readonly stopped: StopReason;
}

/** The continuation of each prompt of token ids, as text. Throws what `generateBatch` throws. */
export async function generateTexts(
  decoder: Decoder,
  adapter: Adapter | null,
  tokenizer: Tokenizer,
  prompts: readonly (readonly number[])[],
  options: GenerateTextOptions,
): Promise<Continuation[]> {
  const { stop = [], onText, signal, ...rest } = options;
  const texts = prompts.map((promptIds) => ({
    stream: new TextStream(tokenizer, promptIds),
    matcher: new StopMatcher(stop),
    text: "",
    interrupted: false,
  }));
  const add = (row: number, text: string) => {
    if (text === "") return;
    texts[row].text += text;
    onText?.(text, row);
  };
  const all = await generateBatch(decoder, adapter, prompts, {
    ...rest,
    stopIds: tokenizer.eosIds,
    onToken: (id, row) => add(row, texts[row].matcher.push(texts[row].stream.push(id))),
    isDone: (row) => {
      texts[row].interrupted = signal?.aborted === true;
      return texts[row].interrupted || texts[row].matcher.isStopped;
    },
  });
  return all.map((ids, row) => {
    const { stream, matcher, interrupted } = texts[row];
    add(row, matcher.push(stream.end()) + matcher.end());
    const last = interrupted ? "interrupted" : "end of text";
    const stopped = matcher.isStopped ? "stop string" : ids.length >= options.maxTokens ? "max tokens" : last;
    return { text: texts[row].text, ids, stopped };
  });
}
