/** Conversations as text, by a model's own Jinja template, run by Hugging Face's library. */
import { Template } from "@huggingface/jinja";
import { SidenetError } from "@sidenet/tensor";
import { z } from "zod";

/** One turn of a conversation. Further fields are passed on to the template. */
export const messageSchema = z.looseObject({ role: z.string(), content: z.string() });
/**
 * One turn of a conversation.
 * @interface
 */
export type ChatMessage = z.infer<typeof messageSchema>;

/** Special tokens by the names that templates use, such as `bos_token`. */
export type SpecialTokens = Readonly<Record<string, string>>;

/** A piece of a record's text. Only `learned` pieces have labels. */
export interface TextPiece {
  readonly text: string;
  readonly learned: boolean;
}

/** A model's chat template. */
export class ChatTemplate {
  readonly #template: Template;
  readonly #special: SpecialTokens;
  readonly #name: string;

  /** `name` appears in error messages. Throws `L-CHAT-TEMPLATE` for text that is not a template. */
  constructor(source: string, special: SpecialTokens, name: string) {
    this.#special = special;
    this.#name = name;
    try {
      this.#template = new Template(source);
    } catch (cause) {
      throw this.#error(`the chat template cannot be parsed: ${(cause as Error).message}`, cause);
    }
  }

  /** The text of a conversation; with `addGenerationPrompt` it ends with the opening of an assistant turn. Throws `L-CHAT-TEMPLATE`. */
  render(messages: readonly ChatMessage[], addGenerationPrompt: boolean): string {
    try {
      return this.#template.render({
        ...this.#special,
        messages,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw this.#error(`the chat template refuses these messages: ${(cause as Error).message}`, cause);
    }
  }

  /**
   * A conversation in pieces, of which the assistant's turns are learned. Throws `L-CHAT-TEMPLATE` where the template changes
   * earlier turns, as some do by removing the reasoning of earlier answers.
   */
  pieces(messages: readonly ChatMessage[]): TextPiece[] {
    const pieces: TextPiece[] = [];
    let done = "";
    const add = (text: string, learned: boolean) => {
      if (!text.startsWith(done)) {
        throw this.#error(
          "the chat template changes what earlier turns look like, so a conversation of several cannot be learned at once. " +
            "Split it into records that end with one answer of the assistant each",
        );
      }
      if (text.length > done.length) pieces.push({ text: text.slice(done.length), learned });
      done = text;
    };
    for (const [i, { role }] of messages.entries()) {
      if (role !== "assistant") continue;
      add(this.render(messages.slice(0, i), true), false);
      add(this.render(messages.slice(0, i + 1), false), true);
    }
    if (messages.at(-1)?.role !== "assistant") add(this.render(messages, false), false);
    return pieces;
  }

  #error(problem: string, cause?: unknown): SidenetError {
    return new SidenetError(
      "L-CHAT-TEMPLATE",
      `${this.#name}: ${problem}. Use --template plain, or --chat-template with another one.`,
      cause === undefined ? {} : { cause },
    );
  }
}
