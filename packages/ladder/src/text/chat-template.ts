/** Conversations as text, by a model's own Jinja template, run by Hugging Face's library. */
import { SidenetError } from "@sidenet/tensor";
import { withArgumentsFor } from "./call-arguments.ts";
import { jinjaTemplate } from "./jinja.ts";
import type { ChatMessage } from "./messages.ts";

/** Special tokens by the names that templates use, such as `bos_token`. */
export type SpecialTokens = Readonly<Record<string, string>>;

/** A tool that the assistant may call, as templates take it: an OpenAI-style description of a function. */
export type Tool = Readonly<Record<string, unknown>>;

/** A piece of a record's text. Only `learned` pieces have labels. */
export interface TextPiece {
  readonly text: string;
  readonly learned: boolean;
}

/** A model's chat template. */
export class ChatTemplate {
  readonly #template: (values: Record<string, unknown>) => string;
  readonly #special: SpecialTokens;
  readonly #name: string;

  /** `name` appears in error messages. Throws `L-CHAT-TEMPLATE` for text that is not a template. */
  constructor(source: string, special: SpecialTokens, name: string) {
    this.#special = special;
    this.#name = name;
    try {
      this.#template = jinjaTemplate(source);
    } catch (cause) {
      throw this.#error(`the chat template cannot be parsed: ${(cause as Error).message}`, cause);
    }
  }

  /**
   * The text of a conversation; with `addGenerationPrompt` it ends with the opening of an assistant turn. Not every template shows
   * `tools`. The `arguments` of calls may be objects or JSON: the template gets what it writes. Throws `L-CHAT-TEMPLATE`.
   */
  render(
    messages: readonly ChatMessage[],
    addGenerationPrompt: boolean,
    tools: readonly Tool[] | null = null,
  ): string {
    return this.#render(this.#withArguments(messages, tools), addGenerationPrompt, tools);
  }

  #withArguments(messages: readonly ChatMessage[], tools: readonly Tool[] | null): readonly ChatMessage[] {
    return withArgumentsFor((given) => this.#render(given, false, tools), messages);
  }

  #render(
    messages: readonly ChatMessage[],
    addGenerationPrompt: boolean,
    tools: readonly Tool[] | null,
  ): string {
    try {
      return this.#template({
        ...this.#special,
        messages,
        tools,
        documents: null,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw this.#error(`the chat template refuses these messages: ${(cause as Error).message}`, cause);
    }
  }

  /**
   * A conversation in pieces, of which the assistant's turns are learned, but for those of `weight` 0. Turns that the template changes when others follow,
   * as some do by removing their reasoning, are not learned, since the model would not write them so. Throws `L-CHAT-TEMPLATE`,
   * also where the template leaves out the calls of tools: their turns would be learned as answers that say nothing.
   */
  pieces(given: readonly ChatMessage[], tools: readonly Tool[] | null = null): TextPiece[] {
    const messages = this.#withArguments(given, tools);
    if (!this.#writesCalls(messages, tools))
      throw this.#error('the chat template does not write "tool_calls"');
    const answers = [...messages.keys()].filter(
      (i) => messages[i].role === "assistant" && messages[i].weight !== 0,
    );
    for (let first = 0; first === 0 || first < answers.length; first++) {
      const pieces = this.#piecesAround(messages, tools, answers.slice(first));
      if (pieces) return pieces;
    }
    throw this.#error(
      "the chat template changes what earlier turns look like, or does not begin an answer as it begins one for generation, " +
        "so the text is not what the model would continue. End the record with an answer of the assistant",
    );
  }

  /** Whether calls of tools show in the text, if there are any. */
  #writesCalls(messages: readonly ChatMessage[], tools: readonly Tool[] | null): boolean {
    const calls = messages.some(({ tool_calls: made }) => Array.isArray(made) && made.length > 0);
    if (!calls) return true;
    const silent = messages.map(({ tool_calls: _, ...message }) => message);
    let text: string;
    try {
      text = this.#render(silent, false, tools);
    } catch {
      return true; // it refuses what only a call explains
    }
    return text !== this.#render(messages, false, tools);
  }

  /** The pieces with these answers learned; null if the text before or of one of them changes when turns follow. */
  #piecesAround(
    messages: readonly ChatMessage[],
    tools: readonly Tool[] | null,
    answers: readonly number[],
  ): TextPiece[] | null {
    const pieces: TextPiece[] = [];
    let done = "";
    const add = (text: string, learned: boolean): boolean => {
      if (text.length > done.length) pieces.push({ text: text.slice(done.length), learned });
      const continues = text.startsWith(done);
      done = text;
      return continues;
    };
    for (const i of answers) {
      if (!add(this.#render(messages.slice(0, i), true, tools), false)) return null;
      if (!add(this.#render(messages.slice(0, i + 1), false, tools), true)) return null;
    }
    return add(this.#render(messages, false, tools), false) ? pieces : null;
  }

  #error(problem: string, cause?: unknown): SidenetError {
    return new SidenetError(
      "L-CHAT-TEMPLATE",
      `${this.#name}: ${problem}. Give another one with --chat-template.`,
      cause === undefined ? {} : { cause },
    );
  }
}
