// Learns a byte-level BPE tokenizer from JSONL files with a field "text", and writes tokenizer.json and
// tokenizer_config.json.
//
//   node examples/pretrain/train-tokenizer.mjs --data books.train.jsonl --size 2048 --output out/pretrain

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { readRecords, writeFileAtomic } from "@sidenet/ladder/node";
import { tokenizerJson, trainBpe } from "./bpe.mjs";

/** The token between texts. */
const END_OF_TEXT = "<|endoftext|>";

const { values } = parseArgs({
  options: {
    data: { type: "string", multiple: true },
    size: { type: "string", default: "2048" },
    output: { type: "string" },
    context: { type: "string", default: "256" },
  },
});
const size = Number(values.size);
if (!values.data || !values.output || !(Number.isInteger(size) && size >= 257)) {
  console.error("usage: node train-tokenizer.mjs --data FILE... --output DIR [--size N, at least 257]");
  process.exit(2);
}

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
  model_max_length: Number(values.context),
});
const seconds = ((performance.now() - started) / 1000).toFixed(1);
console.log(`${Object.keys(model.vocab).length} entries from ${texts.length} texts in ${seconds} s`);
