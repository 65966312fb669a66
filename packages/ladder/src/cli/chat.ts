import type { Device } from "@sidenet/tensor";
import type { Command } from "commander";
import { deviceName } from "../device-name.ts";
import type { Sampling } from "../generation/generate.ts";
import { generateTexts } from "../generation/generate-text.ts";
import { KeptText } from "../generation/kept-text.ts";
import { type Inference, openInference } from "../node/inference.ts";
import type { ChatTemplate } from "../text/chat-template.ts";
import type { ChatMessage } from "../text/messages.ts";
import { requireChatTemplate } from "../text/tokenizer.ts";
import { addConfigOptions } from "./config-options.ts";
import { peakJson, withDevice } from "./device.ts";
import { showLoading } from "./download-progress.ts";
import {
  addInferenceOptions,
  addSamplingOptions,
  type InferenceFlags,
  inferenceOptions,
  samplerOf,
  samplingJson,
  samplingOf,
} from "./inference-options.ts";
import { positiveInteger } from "./options.ts";
import { EXIT, type Outcome, type Session } from "./session.ts";
import { Interrupt } from "./signals.ts";
import type { Report, Terminal } from "./terminal.ts";

interface ChatFlags extends InferenceFlags, Sampling {
  readonly system?: string;
  readonly maxTokens: number;
}

const COMMANDS = `/reset  forget the conversation    /exit  end    /help  this list    Ctrl-C  end the answer, or the chat`;

const HELP = `
Each line of the terminal, or of a pipe, is a turn. In a pipe Ctrl-C ends the chat as well, with exit code 130.
${COMMANDS}

When the conversation outgrows the model's context its oldest turns are dropped, and the rest is read again. A turn that is longer
than the context is refused, and the conversation stays as it was. Decoding is greedy
unless one of --temperature, --top-k, --top-p, --min-p and --seed is given. With --json the last line of standard output holds
the conversation.

Examples:
  $ npx sidenet chat --model SmolLM2-135M-Instruct.Q4_1.gguf --temperature 0.7 --top-p 0.9
  $ echo "What is the capital of France?" | npx sidenet chat --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter out/run`;

export function defineChat(program: Command, session: Session): void {
  const command = program
    .command("chat")
    .description("Chat with a model and, if given, an adapter, in the terminal.")
    .option("--system <text>", "system message")
    .option("--max-tokens <n>", "maximum number of tokens of an answer", positiveInteger, 512);
  addInferenceOptions(addSamplingOptions(command))
    .addHelpText("after", HELP)
    .action(session.action((report, flags: ChatFlags) => chat(report, session.terminal, flags)));
  addConfigOptions(command);
}

async function chat(report: Report, terminal: Terminal, flags: ChatFlags): Promise<Outcome> {
  const sampling = samplingOf(flags);
  return withDevice(flags, report, async (device) => {
    using inference = await openInference(device, inferenceOptions(flags, report), showLoading(report));
    const otherwise = "continue texts with sidenet generate";
    const template = requireChatTemplate(inference.tokenizer, flags.model, otherwise);
    using conversation = new Conversation(inference, template, flags, sampling);
    report.note(COMMANDS);
    let exitCode: number = EXIT.ok;
    for await (const line of terminal.lines?.("> ") ?? []) {
      const text = line.trim();
      if (text === "/exit") break;
      if (text === "/help") report.note(COMMANDS);
      else if (text === "/reset") conversation.reset();
      else if (text.startsWith("/")) report.note(`there is no ${text}. ${COMMANDS}`);
      else if (text !== "" && !(await conversation.answer(text, report)) && !terminal.typed) {
        exitCode = EXIT.SIGINT;
        break;
      }
    }
    return { json: conversation.summary(device), exitCode };
  });
}

/** Tokens that are kept free for an answer. */
const LEAST_ANSWER = 16;

class Conversation {
  readonly #inference: Inference;
  readonly #template: ChatTemplate;
  readonly #flags: ChatFlags;
  readonly #sampling: Required<Sampling>;
  /** What was read and written so far: a turn reads what is new. */
  readonly #kept = new KeptText();
  #messages: ChatMessage[] = [];
  #turns = 0;
  #tokens = 0;
  #seconds = 0;

  constructor(inference: Inference, template: ChatTemplate, flags: ChatFlags, sampling: Required<Sampling>) {
    this.#inference = inference;
    this.#template = template;
    this.#flags = flags;
    this.#sampling = sampling;
    this.reset();
  }

  reset(): void {
    const { system } = this.#flags;
    this.#messages = system === undefined ? [] : [{ role: "system", content: system }];
  }

  /**
   * Prints the assistant's answer as it is generated. A turn that no context has space for is refused, and the conversation goes on.
   * Returns false where Ctrl-C has ended the answer.
   */
  async answer(text: string, report: Report): Promise<boolean> {
    const { decoder, adapter, tokenizer } = this.#inference;
    const ids = this.#take(text, report);
    if (ids === null) return true;
    const space = decoder.contextLimit - ids.length;
    const started = performance.now();
    using interrupt = new Interrupt();
    const [answer] = await generateTexts(decoder, adapter, tokenizer, [ids], {
      maxTokens: Math.min(this.#flags.maxTokens, space),
      // A seed's draws are numbered from each answer's start, so every answer has a seed of its own.
      sampling: samplerOf({ ...this.#sampling, seed: (this.#sampling.seed + this.#turns++) % 2 ** 32 }),
      signal: interrupt.signal,
      kept: this.#kept,
      onText: (part) => report.write(part),
    });
    report.write("\n");
    this.#messages.push({ role: "assistant", content: answer.text });
    this.#tokens += answer.ids.length;
    this.#seconds += (performance.now() - started) / 1000;
    if (answer.stopped === "max tokens")
      report.note(space < this.#flags.maxTokens ? "(cut: the context is full)" : "(cut at --max-tokens)");
    return answer.stopped !== "interrupted";
  }

  /** Adds the user's turn. The conversation as tokens, without its oldest turns where it is too long; null if the turn alone is. */
  #take(text: string, report: Report): number[] | null {
    const { decoder, tokenizer } = this.#inference;
    const messages: ChatMessage[] = [...this.#messages, { role: "user", content: text }];
    const first = this.#flags.system === undefined ? 0 : 1;
    for (let left = 0; ; left += 2) {
      const ids = tokenizer.encode(this.#template.render(messages, true), { addSpecialTokens: false });
      if (ids.length + LEAST_ANSWER <= decoder.contextLimit) {
        if (left > 0) report.note(`(the ${left} oldest messages no longer fit the context)`);
        this.#messages = messages;
        return ids;
      }
      if (messages.length === first + 1) {
        report.error(
          `[L-CONTEXT] a turn of ${ids.length} tokens, chat template and system message included, leaves no space for an answer in ` +
            `${decoder.contextText}. The turn is left out: say it in fewer words.`,
        );
        return null;
      }
      messages.splice(first, 2);
    }
  }

  summary(device: Device): object {
    return {
      messages: this.#messages,
      tokens: this.#tokens,
      tokens_per_second: this.#tokens / Math.max(this.#seconds, 1e-9),
      model: this.#flags.model,
      adapter: this.#flags.adapter ?? null,
      device: deviceName(device),
      sampling: samplingJson(this.#sampling),
      ...peakJson(device),
    };
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.#kept.dispose();
  }
}
