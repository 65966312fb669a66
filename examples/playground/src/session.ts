/** A model on a device, which trains and generates text with the library. It draws nothing. */
import {
  type Adapter,
  Decoder,
  decoderParameters,
  defaultStorage,
  generateTexts,
  initializeAdapter,
  loadWeights,
  openModelFiles,
  type Tokenizer,
} from "@sidenet/ladder";
import {
  type BrowserDeviceName,
  type OpenedDevice,
  openBrowserDevice,
  SidenetError,
  sizeOf,
} from "@sidenet/tensor";
import type { DeviceFacts, ModelUrls, Passage, Report, RunSettings, TextFile, When } from "./protocol.ts";
import { readSequences } from "./sequences.ts";
import { trainAdapter } from "./training.ts";

const SEED = 1;
/** A side network half as wide as the model, and LoRA of the default rank. */
const METHOD = { ladder: { reduction: 2 }, seed: SEED };

/** Sends progress to the page. */
type Tell = (report: Report) => void;

async function fetchFile([name, url]: readonly [string, string]): Promise<File> {
  const response = await fetch(url).catch((cause: unknown) => {
    throw new SidenetError("P-FETCH", `${url} cannot be fetched. Is the page's server still there?`, {
      cause,
    });
  });
  if (!response.ok) throw new SidenetError("P-FETCH", `${url} gave status ${response.status}.`);
  return new File([await response.blob()], name);
}

export class Session {
  readonly facts: DeviceFacts;
  readonly #decoder: Decoder;
  readonly #tokenizer: Tokenizer;
  readonly #modelName: string;
  #adapter: Adapter | null = null;

  private constructor(
    { device, reason }: OpenedDevice,
    parts: { decoder: Decoder; tokenizer: Tokenizer; name: string },
  ) {
    this.facts = { kind: device.kind, label: device.label, reason };
    this.#decoder = parts.decoder;
    this.#tokenizer = parts.tokenizer;
    this.#modelName = parts.name;
  }

  /** Opens a device and loads the model on it, with its blocks in NF4 for both methods. */
  static async open(choice: BrowserDeviceName, model: ModelUrls, tell: Tell): Promise<Session> {
    tell({ type: "busy", what: "Looking for a device" });
    const opened = await openBrowserDevice(choice);
    try {
      tell({ type: "busy", what: "Reading the model" });
      const { device } = opened;
      const { name, files } = model;
      const { config, checkpoint, tokenizer } = await openModelFiles(
        await Promise.all(Object.entries(files).map(fetchFile)),
        name,
      );
      const weights = await loadWeights(device, config, checkpoint, defaultStorage("qlora", device));
      const decoder = new Decoder(config, weights);
      return new Session(opened, { decoder, tokenizer: await tokenizer(), name });
    } catch (error) {
      opened.device.dispose();
      throw error;
    }
  }

  /** The number of parameters of the model. */
  get parameters(): number {
    return decoderParameters(this.#decoder.config).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  }

  /** Trains an adapter, which replaces the last one, and generates text before and after. */
  async train(settings: RunSettings, text: TextFile, tell: Tell, signal: AbortSignal): Promise<void> {
    tell({ type: "busy", what: "Reading the text" });
    const decoder = this.#decoder;
    const { method, maxLength, passage } = settings;
    const data = await readSequences(text, this.#tokenizer, { maxLength, seed: SEED });
    this.#adapter?.dispose();
    this.#adapter = null;
    const adapter = await initializeAdapter({ ...METHOD, method }, decoder, this.#modelName);
    this.#adapter = adapter;
    tell({ type: "busy", what: "Writing before the training" });
    await this.#write("before", passage, tell, signal);
    tell({ type: "busy", what: "Training" });
    const run = { decoder, adapter, data, settings, signal, tell, modelName: this.#modelName, seed: SEED };
    tell({ type: "finished", result: await trainAdapter(run) });
    tell({ type: "busy", what: "Writing after the training" });
    await this.#write("after", passage, tell, new AbortController().signal);
  }

  /** Generates text with the frozen model and, if there is one, with the adapter. */
  async generate(passage: Passage, tell: Tell, signal: AbortSignal): Promise<void> {
    tell({ type: "busy", what: "Writing" });
    await this.#write("before", passage, tell, signal);
    if (this.#adapter && !signal.aborted) await this.#write("after", passage, tell, signal);
  }

  async #write(when: When, { prompt, tokens }: Passage, tell: Tell, signal: AbortSignal): Promise<void> {
    tell({ type: "clear-text", when, prompt });
    const ids = this.#tokenizer.encode(prompt, { addSpecialTokens: false });
    await generateTexts(this.#decoder, when === "after" ? this.#adapter : null, this.#tokenizer, [ids], {
      maxTokens: tokens,
      sampling: { temperature: 0.8, topP: 0.9, seed: SEED },
      onText: (text) => tell({ type: "text", when, text }),
      signal,
    });
  }

  dispose(): void {
    this.#adapter?.dispose();
    this.#decoder.dispose();
    this.#decoder.device.dispose();
  }
}
