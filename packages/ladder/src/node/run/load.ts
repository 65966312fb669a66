/** What a run trains, and on what: files become a model on a device and records of tokens. */
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { type Device, SidenetError } from "@sidenet/tensor";
import type { TokenDataset } from "../../data/batch-stream.ts";
import { EncodedRecords, splitRecords } from "../../data/encoded-records.ts";
import { mapFields } from "../../data/field-mapping.ts";
import { mixture, repeatsOf } from "../../data/mixture.ts";
import { pickItems, type RecordList, type RecordParser, recordParser } from "../../data/record-list.ts";
import { type EncodeOptions, encodingBy, type TokenRecord } from "../../data/records.ts";
import { trainingRecord } from "../../eval/tasks.ts";
import { contextLimit } from "../../model/config.ts";
import type { Decoder } from "../../model/decoder.ts";
import { loadWeights } from "../../model/load-weights.ts";
import { checkPrefix } from "../../model/prefix.ts";
import { afterPrefix } from "../../text/prefix-text.ts";
import type { Tokenizer } from "../../text/tokenizer.ts";
import { checkMethod } from "../../training/plan.ts";
import { openRecords, type RecordStore } from "../data/record-store.ts";
import { prefixedDecoder, prefixIdsOf, withTemplateOf } from "../inference.ts";
import { type ModelFiles, openModel } from "../open-model.ts";
import type { TrainRunOptions } from "./train-run-options.ts";

export interface LoadedRun {
  readonly decoder: Decoder;
  readonly tokenizer: Tokenizer;
  readonly modelName: string;
  /** Sizes and times of the files that the weights are in. */
  readonly weightFiles: readonly (readonly (number | undefined)[])[];
  readonly train: TokenDataset;
  /** Records that are trained on, whatever their weights. */
  readonly trainRecords: number;
  /** Those of each file, and how often each of them appears in an epoch: "384 x 1 + 20 x 3". */
  readonly mixture: string;
  readonly heldOut: readonly TokenRecord[];
  readonly maxLength: number;
  /** Closes the files of data, which are read as they are needed. */
  close(): Promise<void>;
}

/** Records held out of as many, unless it is said how many. */
const usualHeldOut = (total: number): number => Math.min(16, Math.max(1, Math.floor(total / 5)));

/** How many of so many records are held out of each file: in proportion to its length. */
function heldOutOf(lengths: readonly number[], total: number, heldOut: number): number[] {
  let before = 0;
  return lengths.map((length) => {
    const start = Math.round((before * heldOut) / total);
    before += length;
    return Math.round((before * heldOut) / total) - start;
  });
}

interface Parts {
  /** One for each file. */
  readonly train: readonly RecordList[];
  readonly heldOut: readonly RecordList[];
}

/** Holds out records of all files; below 1 the same share of each. Throws `L-DATA` when a part would be empty. */
function split(files: readonly RecordList[], { heldOut, seed }: TrainRunOptions): Parts {
  const lengths = files.map(({ length }) => length);
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const wanted = heldOut ?? usualHeldOut(total);
  if (wanted === 0) return { train: files, heldOut: [] };
  const isShare = wanted < 1;
  const amounts = isShare ? lengths.map(() => wanted) : heldOutOf(lengths, total, wanted);
  const train: RecordList[] = [];
  const held: RecordList[] = [];
  for (const [i, records] of files.entries()) {
    const amount = amounts[i];
    // One of several files may be on one side as a whole.
    if (!isShare && wanted < total && (amount === 0 || amount === records.length)) {
      train.push(amount === 0 ? records : pickItems(records, []));
      if (amount > 0) held.push(records);
      continue;
    }
    const parts = splitRecords(records, { amount, isShare }, seed);
    train.push(parts.train);
    held.push(parts.heldOut);
  }
  return { train, heldOut: held };
}

interface OpenedData extends Parts {
  readonly weights: readonly number[];
  close(): Promise<void>;
}

/** How rows become records: by their fields, or as a task's questions and right answers. */
function parserOf({ task = null, template, fields }: TrainRunOptions): RecordParser {
  if (task === null) return recordParser(fields);
  return (value, source) =>
    trainingRecord(task, mapFields(value, fields, source), source, template === "chat");
}

/** Held-out records come from the end of the data, unless `evalData` names files for them. */
async function openData(options: TrainRunOptions): Promise<OpenedData> {
  const files = options.data.map((file) => (typeof file === "string" ? { path: file, weight: 1 } : file));
  const evalData = options.evalData ?? [];
  const stores: RecordStore[] = [];
  const close = async () => {
    for (const store of stores) await store.close();
  };
  try {
    for (const path of [...files.map((file) => file.path), ...evalData]) {
      stores.push(await openRecords([path], parserOf(options)));
    }
    const data = stores.slice(0, files.length);
    const parts =
      evalData.length > 0 ? { train: data, heldOut: stores.slice(files.length) } : split(data, options);
    return { ...parts, weights: files.map(({ weight }) => weight), close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function weightFilesOf({ origin }: ModelFiles): Promise<LoadedRun["weightFiles"]> {
  const paths =
    origin.kind === "gguf"
      ? new Set([...origin.gguf.tensors.values()].map(({ source }) => source.name))
      : (await readdir(origin.folder))
          .filter((name) => name.endsWith(".safetensors"))
          .sort()
          .map((name) => join(origin.folder, name));
  const files = await Promise.all([...paths].map((path) => stat(path).catch(() => null)));
  return files.map((file) => [file?.size, file?.mtimeMs]);
}

/** Reads the data before the model: a mistake in a file of kilobytes is reported before gigabytes are read. */
export async function loadRun(
  device: Device,
  options: TrainRunOptions,
  onLoad: ((doneBytes: number, totalBytes: number) => void) | null,
): Promise<LoadedRun> {
  const data = await openData(options);
  try {
    const { train, heldOut } = data;
    const model = await openModel(options.model);
    try {
      const { config } = model;
      const whole = await withTemplateOf(await model.tokenizer(), options.chatTemplate ?? null);
      const prefixIds = options.prefix == null ? [] : await prefixIdsOf(options.prefix, whole);
      checkPrefix(prefixIds, config);
      checkMethod(config, { ...options, hasPrefix: prefixIds.length > 0 });
      const tokenizer = afterPrefix(whole, prefixIds);
      const encoding = encodingOf(contextLimit(config) - prefixIds.length, tokenizer, options);
      const encoded = (records: RecordList) => new EncodedRecords(records, tokenizer, encoding);
      const sets = train.map(encoded);
      for (const set of sets) await set.check();
      const held = await Promise.all(heldOut.map((records) => encoded(records).all()));
      const weights = await loadWeights(device, config, model.checkpoint, {
        ...options.storage,
        ...(onLoad ? { onProgress: onLoad } : {}),
      });
      const repeats = repeatsOf(data.weights);
      return {
        decoder: prefixedDecoder(config, weights, prefixIds),
        tokenizer,
        modelName: model.name,
        weightFiles: await weightFilesOf(model),
        train: mixture(sets, data.weights),
        trainRecords: sets.reduce((sum, { length }) => sum + length, 0),
        mixture: sets.map(({ length }, i) => `${length} x ${repeats[i]}`).join(" + "),
        heldOut: held.flat(),
        maxLength: encoding.maxLength,
        close: data.close,
      };
    } finally {
      await model.close();
    }
  } catch (error) {
    await data.close();
    throw error;
  }
}

function encodingOf(
  context: number,
  tokenizer: Tokenizer,
  { maxLength, packLength, template }: TrainRunOptions,
): EncodeOptions {
  if (packLength != null && packLength > context) {
    throw new SidenetError(
      "L-OPTION",
      `rows of --pack-length ${packLength} tokens are more than the model's context of ${context}. Lower it.`,
    );
  }
  return {
    ...encodingBy(tokenizer),
    maxLength: Math.min(maxLength ?? context, context),
    cut: maxLength !== null,
    asChat: template === "chat",
  };
}
