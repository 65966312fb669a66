/** Continuations as text: streamed, and ended by stop strings. */
import type { Adapter } from "./adapter.ts";
import type { Decoder } from "./decoder.ts";
import { type GenerateOptions, generateBatch } from "./generate.ts";
import { StopMatcher, TextStream } from "./text-stream.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** As `GenerateOptions`, in words instead of ids. */
export interface GenerateTextOptions extends Omit<GenerateOptions, "onToken" | "isDone" | "stopIds"> {
  /** Texts that end a continuation; they are not part of it. */
  readonly stop?: readonly string[];
  /** Shown the text as it is sure to stand, and the number of its prompt. */
  readonly onText?: (text: string, prompt: number) => void;
  /** Asked after each token; true ends all continuations. */
  readonly isStopped?: () => boolean | Promise<boolean>;
}

/** Why a text ended. */
export type StopReason = "end of text" | "stop string" | "max tokens" | "interrupted";

/** What a prompt was continued with, and why it ended. */
export interface Continuation {
  readonly text: string;
  /** All new ids, those of a stop string included. */
  readonly ids: readonly number[];
  readonly stopped: StopReason;
}

/** Texts that go on from token ids. Throws what `generateBatch` throws. */
export async function generateTexts(
  decoder: Decoder,
  adapter: Adapter | null,
  tokenizer: Tokenizer,
  prompts: readonly (readonly number[])[],
  options: GenerateTextOptions,
): Promise<Continuation[]> {
  const { stop = [], onText, isStopped = () => false, ...rest } = options;
  let interrupted = false;
  const texts = prompts.map((promptIds) => ({
    stream: new TextStream(tokenizer, promptIds),
    matcher: new StopMatcher(stop),
    text: "",
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
    isDone: async (row) => {
      interrupted ||= await isStopped();
      return interrupted || texts[row].matcher.isStopped;
    },
  });
  return all.map((ids, row) => {
    const { stream, matcher } = texts[row];
    if (!matcher.isStopped) add(row, matcher.push(stream.end()) + matcher.end());
    const last = interrupted ? "interrupted" : "end of text";
    const stopped = matcher.isStopped ? "stop string" : ids.length >= options.maxTokens ? "max tokens" : last;
    return { text: texts[row].text, ids, stopped };
  });
}
