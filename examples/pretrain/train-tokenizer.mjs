// Learns a byte-level BPE tokenizer from JSONL files with a field "text", and writes tokenizer.json and
// tokenizer_config.json.
//
//   node examples/pretrain/train-tokenizer.mjs --data books.train.jsonl --size 2048 --output out/corpus
//
// --data may be given several times. --size is the number of entries, at least 257; --context is the model's.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { readRecords, writeFileAtomic } from "@sidenet/ladder/node";
import { scriptOptions, usageError } from "../../scripts/lib/options.mjs";
import { tokenizerJson, trainBpe } from "./bpe.mjs";

/** The token between texts. */
const END_OF_TEXT = "<|endoftext|>";

const values = scriptOptions(
  { data: { type: "string", multiple: true }, output: null, size: 2048, context: 256 },
  { required: ["data", "output"] },
);
const { size } = values;
if (size < 257) usageError(`--size ${size}: wanted 257 or more, a token for each byte and one between texts`);

const texts = [];
for (const path of values.data) for await (const { record } of readRecords(path, {})) texts.push(record.text);
const started = performance.now();
const model = trainBpe(texts, size, [END_OF_TEXT]);
mkdirSync(values.output, { recursive: true });
const write = (name, json) =>
  writeFileAtomic(join(values.output, name), `${JSON.stringify(json, null, 1)}\n`);
await write("tokenizer.json", tokenizerJson(model, [END_OF_TEXT]));
await write("tokenizer_config.json", {
  tokenizer_class: "GPT2Tokenizer",
  bos_token: END_OF_TEXT,
  eos_token: END_OF_TEXT,
  add_prefix_space: false,
  clean_up_tokenization_spaces: false,
  model_max_length: values.context,
});
const seconds = ((performance.now() - started) / 1000).toFixed(1);
console.log(`${Object.keys(model.vocab).length} entries from ${texts.length} texts in ${seconds} s`);
