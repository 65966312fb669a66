/** Conversations as the text a model was trained on: its own Jinja template, run by the hub's own library. */
import { Template } from "@huggingface/jinja";
import { SidenetError } from "@sidenet/tensor";
import { z } from "zod";

/** One turn. Fields beyond these are handed to the template as they are. */
export const messageSchema = z.looseObject({ role: z.string(), content: z.string() });
/**
 * A turn of a conversation: who says it, and what.
 * @interface
 */
export type ChatMessage = z.infer<typeof messageSchema>;

/** What a template may name: `bos_token` and the like. */
export type SpecialTokens = Readonly<Record<string, string>>;

/** A stretch of text; `learned`: by training, as it is what the assistant says. */
export interface TextPiece {
  readonly text: string;
  readonly learned: boolean;
}

/** A model's way to write conversations as text, in Jinja. */
export class ChatTemplate {
  readonly #template: Template;
  readonly #special: SpecialTokens;
  readonly #name: string;

  /** `name` stands in messages. Throws `L-CHAT-TEMPLATE` for what is no template. */
  constructor(source: string, special: SpecialTokens, name: string) {
    this.#special = special;
    this.#name = name;
    try {
      this.#template = new Template(source);
    } catch (cause) {
      throw this.#error(`the chat template is not understood: ${(cause as Error).message}`, cause);
    }
  }

  /** `addGenerationPrompt`: ends with what opens the assistant's turn. Throws `L-CHAT-TEMPLATE`. */
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
   * A conversation in pieces, of which what the assistant says is learned: what each of its turns adds to the text that
   * opens it. Throws `L-CHAT-TEMPLATE` where the template changes earlier turns, as some do with their thoughts.
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
