/** What a run trains, and on what: files become a model on a device and records of tokens. */
import { type Device, SidenetError } from "@sidenet/tensor";
import type { Adapter } from "../../adapter.ts";
import { contextLimit } from "../../config.ts";
import { inMemory, type TokenDataset } from "../../data/batch-stream.ts";
import { mixture } from "../../data/mixture.ts";
import { Decoder } from "../../decoder.ts";
import { generate } from "../../generate.ts";
import { loadWeights } from "../../load-weights.ts";
import { encodeRecord, type TextRecord, type TokenRecord } from "../../records.ts";
import type { Tokenizer } from "../../tokenizer.ts";
import { readRecords } from "../data/record-store.ts";
import { openModel } from "../open-model.ts";
import type { TrainRunOptions } from "../train-run.ts";
import type { Sample } from "./metrics-log.ts";

/** A file of records, and how much of the training it is beside the others. */
export interface WeightedFile {
  readonly path: string;
  readonly weight: number;
}

export interface LoadedRun {
  readonly decoder: Decoder;
  readonly tokenizer: Tokenizer;
  readonly modelName: string;
  readonly train: TokenDataset;
  /** Records that are trained on, whatever their weights. */
  readonly trainRecords: number;
  readonly heldOut: readonly TokenRecord[];
  readonly maxLength: number;
  readonly padId: number;
}

interface Sourced {
  readonly record: TextRecord;
  readonly source: string;
}

/** Records of each file, and of those the last ones that are held back: of each file its share. */
function holdBack(files: readonly Sourced[][], heldOut: number): { train: Sourced[][]; heldOut: Sourced[] } {
  const total = files.reduce((sum, { length }) => sum + length, 0);
  if (total <= heldOut || heldOut === 0) {
    throw new SidenetError(
      "L-DATA",
      `the data has ${total} records, and ${heldOut} are to be held back. Wanted at least one to hold back and ` +
        "one to train on: give more data or a smaller --held-out.",
    );
  }
  const held: Sourced[] = [];
  let before = 0;
  const train = files.map((records) => {
    const until = Math.round(((before + records.length) * heldOut) / total);
    const count = until - Math.round((before * heldOut) / total);
    before += records.length;
    held.push(...records.slice(records.length - count));
    return records.slice(0, records.length - count);
  });
  return { train, heldOut: held };
}

/** Data first, then the model: a mistake in a file of kilobytes is told before gigabytes are read. */
export async function loadRun(
  device: Device,
  options: TrainRunOptions,
  onLoad: ((doneBytes: number, totalBytes: number) => void) | null,
): Promise<LoadedRun> {
  const files = options.data.map((file) => (typeof file === "string" ? { path: file, weight: 1 } : file));
  const read: Sourced[][] = [];
  for (const { path } of files) {
    const records: Sourced[] = [];
    for await (const item of readRecords(path, options.fields)) records.push(item);
    read.push(records);
  }
  const { train, heldOut } = holdBack(read, options.heldOut);
  const model = await openModel(options.model);
  try {
    const { config } = model;
    const tokenizer = await model.tokenizer();
    const context = contextLimit(config);
    const maxLength = Math.min(options.maxLength ?? context, context);
    const encoding = {
      bosId: tokenizer.encode("").includes(tokenizer.bosId ?? -1) ? tokenizer.bosId : null,
      eosId: tokenizer.eosIds[0] ?? null,
      maxLength,
      cut: options.maxLength !== null,
    };
    const encode = ({ record, source }: Sourced) => encodeRecord(record, source, tokenizer, encoding);
    const sets = train.map((records) => inMemory(records.map(encode)));
    const heldRecords = heldOut.map(encode);
    const weights = await loadWeights(device, config, model.checkpoint, {
      ...options.storage,
      ...(onLoad ? { onProgress: onLoad } : {}),
    });
    return {
      decoder: new Decoder(config, weights),
      tokenizer,
      modelName: model.name,
      train: mixture(
        sets,
        files.map(({ weight }) => weight),
      ),
      trainRecords: sets.reduce((sum, { length }) => sum + length, 0),
      heldOut: heldRecords,
      maxLength,
      padId: config.padTokenId ?? tokenizer.eosIds[0] ?? 0,
    };
  } finally {
    await model.close();
  }
}

/** Tokens of a record's learned part that a sample is shown, so that it continues a text instead of opening one. */
const SHOWN_TOKENS = 12;

/** How the shortest held-back record goes on, greedily, after its prompt and its first learned tokens. */
export async function sampleText(
  run: LoadedRun,
  adapter: Adapter | null,
  maxTokens: number,
): Promise<Sample> {
  const { tokenizer, heldOut, decoder } = run;
  const record = heldOut.reduce((a, b) => (b.inputIds.length < a.inputIds.length ? b : a));
  const learnedFrom = record.labels.findIndex((label) => label !== -100);
  const ids = record.inputIds.slice(0, learnedFrom + SHOWN_TOKENS);
  const text = await generate(decoder, adapter, ids, { maxTokens, stopIds: tokenizer.eosIds });
  return { prompt: tokenizer.decode(ids), text: tokenizer.decode(text) };
}
