/** A model on a device, and what is done with it: training and text. All of it is the library's; nothing here is drawn. */
import { makeSchedule } from "@sidenet/autograd";
import {
  type Adapter,
  BatchStream,
  type Checkpoint,
  Decoder,
  decoderParameters,
  defaultMemory,
  defaultStorage,
  encodeAdapter,
  encodeWindows,
  evaluateLoss,
  generateTexts,
  inBatches,
  initializeAdapter,
  inMemory,
  jsonlRows,
  type LabeledBatch,
  linesOf,
  loadTokenizer,
  loadWeights,
  memorySource,
  newRunState,
  openSafetensors,
  parseModelConfig,
  parseRecord,
  splitRecords,
  type Tokenizer,
  type TokenRecord,
  Trainer,
  TrainingLoop,
  textRows,
} from "@sidenet/ladder";
import {
  type BrowserDeviceName,
  type OpenedDevice,
  openBrowserDevice,
  SidenetError,
  sizeOf,
} from "@sidenet/tensor";
import type {
  DeviceFacts,
  ModelUrls,
  Report,
  RunFacts,
  RunResult,
  RunSettings,
  TextFile,
  When,
} from "./protocol.ts";

const BATCH_SIZE = 4;
const MAX_LENGTH = 128;
/** Of all sequences, at most so many. */
const HELD_OUT_SHARE = 0.1;
const MOST_HELD_OUT = 16;
/** Tokens that a text must have: enough for a batch and something to hold back. */
const FEWEST_TOKENS = 2 * MAX_LENGTH;
const NEW_TOKENS = 64;
const EVALUATIONS = 6;
const SEED = 1;

/** A side network half as wide as the model, and LoRA of the rank that is the library's default. */
const METHOD = { ladder: { reduction: 2 }, lora: {}, seed: SEED };

/** Lets the worker take a message, "stop" above all, between two steps: WebAssembly never waits by itself. */
const nextTask = (): Promise<void> =>
  new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });

async function fetchBytes(url: string): Promise<Uint8Array> {
  const response = await fetch(url).catch((cause: unknown) => {
    throw new SidenetError("P-FETCH", `${url} cannot be fetched. Is the page's server still there?`, {
      cause,
    });
  });
  if (!response.ok) throw new SidenetError("P-FETCH", `${url} gave status ${response.status}.`);
  return new Uint8Array(await response.arrayBuffer());
}

const fetchJson = async (url: string): Promise<unknown> =>
  JSON.parse(new TextDecoder().decode(await fetchBytes(url)));

/** Sequences of a text, one after the other. Throws `L-DATA`, `L-RECORD` and `P-TEXT-SHORT`. */
async function readText({ name, bytes }: TextFile, tokenizer: Tokenizer): Promise<TokenRecord[]> {
  const lines = linesOf([bytes], name);
  const rows = /\.jsonl$/i.test(name) ? jsonlRows(lines, name) : textRows(lines, name);
  const encoding = { bosId: null, eosId: null, maxLength: MAX_LENGTH, cut: true };
  const records: TokenRecord[] = [];
  for await (const { value, source } of rows) {
    records.push(...encodeWindows(parseRecord(value, source), source, tokenizer, encoding));
  }
  const tokens = countTokens(records);
  if (tokens >= FEWEST_TOKENS && records.length > 1) return records;
  throw new SidenetError(
    "P-TEXT-SHORT",
    `the text has ${tokens} tokens, and a run needs at least ${FEWEST_TOKENS} (about 700 letters). Give more of it.`,
  );
}

const countTokens = (records: readonly TokenRecord[]): number =>
  records.reduce((sum, { inputIds }) => sum + inputIds.length, 0);

/** Tells the page what goes on. */
export type Tell = (report: Report) => void;

interface LoopSetup {
  readonly trainer: Trainer;
  readonly train: readonly TokenRecord[];
  readonly facts: RunFacts;
  readonly steps: number;
  readonly evaluate: () => Promise<number>;
  readonly tell: Tell;
  readonly signal: AbortSignal;
}

export class Session {
  readonly facts: DeviceFacts;
  readonly #decoder: Decoder;
  readonly #tokenizer: Tokenizer;
  readonly #modelName: string;
  #adapter: Adapter | null = null;

  private constructor(opened: OpenedDevice, parts: { decoder: Decoder; tokenizer: Tokenizer; name: string }) {
    const { device, reason } = opened;
    this.facts = { kind: device.kind, label: device.label, reason };
    this.#decoder = parts.decoder;
    this.#tokenizer = parts.tokenizer;
    this.#modelName = parts.name;
  }

  /** Opens a device and puts the model there, as both methods want it: its blocks in NF4. */
  static async open(name: BrowserDeviceName, model: ModelUrls, tell: Tell): Promise<Session> {
    tell({ type: "busy", what: "Looking for a device" });
    const opened = await openBrowserDevice(name);
    try {
      tell({ type: "busy", what: "Reading the model" });
      const { device } = opened;
      const [config, weights, tokenizer, tokenizerConfig] = await Promise.all([
        fetchJson(model.config),
        fetchBytes(model.weights),
        fetchJson(model.tokenizer),
        fetchJson(model.tokenizerConfig),
      ]);
      const modelConfig = parseModelConfig(config, model.config);
      const checkpoint: Checkpoint = await openSafetensors(memorySource(weights, model.weights));
      const storage = defaultStorage("qlora", device);
      const decoder = new Decoder(modelConfig, await loadWeights(device, modelConfig, checkpoint, storage));
      return new Session(opened, {
        decoder,
        tokenizer: loadTokenizer(tokenizer, tokenizerConfig, model.tokenizer),
        name: model.name,
      });
    } catch (error) {
      opened.device.dispose();
      throw error;
    }
  }

  /** Of the model, whatever their storage. */
  get parameters(): number {
    return decoderParameters(this.#decoder.config).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  }

  /** Trains an adapter in place of the last one; text of the model before and after. */
  async train(settings: RunSettings, text: TextFile, tell: Tell, signal: AbortSignal): Promise<void> {
    tell({ type: "busy", what: "Reading the text" });
    const decoder = this.#decoder;
    const { device } = decoder;
    const data = await this.#split(await readText(text, this.#tokenizer));
    this.#adapter?.dispose();
    this.#adapter = null;
    const adapter = await initializeAdapter({ ...METHOD, method: settings.method }, decoder, this.#modelName);
    this.#adapter = adapter;
    tell({ type: "busy", what: "Writing before the training" });
    await this.#write("before", settings.prompt, tell, signal);
    tell({ type: "busy", what: "Training" });
    const evaluate = () => evaluateLoss(decoder, adapter, this.#batches(data.heldOut));
    const facts: RunFacts = {
      trainableParameters: adapter.parameters.count,
      trainTokens: countTokens(data.train),
      heldOutTokens: countTokens(data.heldOut),
      initialLoss: await evaluate(),
    };
    tell({ type: "started", facts });
    using trainer = this.#trainer(adapter, settings);
    device.memory.resetPeak();
    const loop = this.#loop({
      trainer,
      train: data.train,
      facts,
      steps: settings.steps,
      evaluate,
      tell,
      signal,
    });
    const reason = await loop.run();
    const { peakBytes, byCategory: peak } = device.memory.peak(0);
    const { counters, seconds, tokens } = loop.state;
    const base = { name: this.#modelName, config: decoder.config, quantized: decoder.isQuantized };
    const result: RunResult = {
      ...{ stopped: reason === "signal", steps: counters.step, seconds, tokens, peakBytes, peak },
      finalLoss: await evaluate(),
      adapter: await encodeAdapter(adapter, base),
    };
    tell({ type: "finished", result });
    tell({ type: "busy", what: "Writing after the training" });
    await this.#write("after", settings.prompt, tell, new AbortController().signal);
  }

  /** Text of the model as it is and, once something was trained, with it. */
  async generate(prompt: string, tell: Tell, signal: AbortSignal): Promise<void> {
    tell({ type: "busy", what: "Writing" });
    await this.#write("before", prompt, tell, signal);
    if (this.#adapter && !signal.aborted) await this.#write("after", prompt, tell, signal);
  }

  async #split(records: readonly TokenRecord[]): Promise<Record<"train" | "heldOut", TokenRecord[]>> {
    const amount = Math.min(MOST_HELD_OUT / records.length, HELD_OUT_SHARE);
    const parts = splitRecords(inMemory(records), { amount, isShare: true }, SEED);
    const all = ({ length, get }: typeof parts.train) =>
      Promise.all(Array.from({ length }, (_, i) => get(i)));
    return { train: await all(parts.train), heldOut: await all(parts.heldOut) };
  }

  get #padId(): number {
    return this.#decoder.config.padTokenId ?? 0;
  }

  #batches(records: readonly TokenRecord[]): LabeledBatch[] {
    return inBatches(records, BATCH_SIZE, this.#padId, MAX_LENGTH);
  }

  /** The library's loop, with the page as its log. */
  #loop({ trainer, train, facts, steps, evaluate, tell, signal }: LoopSetup): TrainingLoop {
    const { device } = this.#decoder;
    const { initialLoss } = facts;
    const rows = { batchSize: BATCH_SIZE, seed: SEED, padId: this.#padId, maxLength: MAX_LENGTH };
    const stream = new BatchStream(inMemory(train), rows);
    const start = {
      trainRecords: train.length,
      frozenEvalLoss: initialLoss,
      initialEvalLoss: initialLoss,
      sample: null,
    };
    return new TrainingLoop(
      {
        ...{ trainer, stream, signal, checkpoints: null },
        log: { append: nextTask, flush: nextTask },
        options: { steps, evalEvery: Math.max(1, Math.round(steps / EVALUATIONS)) },
        events: {
          onStep: (metrics) => tell({ type: "step", metrics, live: device.memory.live }),
          onEvaluation: ({ step, eval_loss: loss }) => tell({ type: "evaluation", step, loss }),
          onNote: (text) => tell({ type: "note", text }),
        },
        evaluate: async () => ({ loss: await evaluate(), sample: null }),
      },
      newRunState(start, device.label, stream.position),
      false,
    );
  }

  #trainer(adapter: Adapter, { method, steps, learningRate }: RunSettings): Trainer {
    const warmupSteps = Math.min(10, Math.floor(steps / 10));
    return new Trainer(this.#decoder, adapter, {
      ...defaultMemory(method, defaultStorage(method, this.#decoder.device)),
      learningRate: makeSchedule({ kind: "cosine", lr: learningRate, warmupSteps, totalSteps: steps }),
      weightDecay: 0,
    });
  }

  async #write(when: When, prompt: string, tell: Tell, signal: AbortSignal): Promise<void> {
    tell({ type: "clear-text", when, prompt });
    const ids = this.#tokenizer.encode(prompt, { addSpecialTokens: false });
    await generateTexts(this.#decoder, when === "after" ? this.#adapter : null, this.#tokenizer, [ids], {
      maxTokens: NEW_TOKENS,
      sampling: { temperature: 0.8, topP: 0.9, seed: SEED },
      onText: (text) => tell({ type: "text", when, text }),
      isStopped: async () => {
        await nextTask();
        return signal.aborted;
      },
    });
  }

  dispose(): void {
    this.#adapter?.dispose();
    this.#decoder.dispose();
    this.#decoder.device.dispose();
  }
}
