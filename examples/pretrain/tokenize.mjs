// Encodes JSONL files with a field "text" as one sequence of 16-bit token ids, with an end-of-text token before each text. A
// .json file beside it has the counts of tokens, texts and bytes, which bits per byte need.
//
//   node examples/pretrain/tokenize.mjs --tokenizer out/corpus --data books.train.jsonl --output out/corpus/train.u16
//
// --data may be given several times.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { loadTokenizer } from "@sidenet/ladder";
import { readRecords, writeFileAtomic } from "@sidenet/ladder/node";
import { scriptOptions } from "../../scripts/lib/options.mjs";

const values = scriptOptions(
  { tokenizer: null, data: { type: "string", multiple: true }, output: null },
  { required: ["tokenizer", "data", "output"] },
);
const read = async (name) => JSON.parse(await readFile(join(values.tokenizer, name), "utf8"));
const tokenizer = loadTokenizer(await read("tokenizer.json"), await read("tokenizer_config.json"));
const ids = [];
let texts = 0;
let bytes = 0;
for (const path of values.data) {
  for await (const { record } of readRecords(path, {})) {
    ids.push(tokenizer.eosIds[0]);
    for (const id of tokenizer.encode(record.text)) ids.push(id);
    texts++;
    bytes += Buffer.byteLength(record.text);
  }
}
await writeFileAtomic(values.output, new Uint8Array(Uint16Array.from(ids).buffer));
const counts = { tokens: ids.length, texts, bytes };
await writeFileAtomic(`${values.output.replace(/\.u16$/, "")}.json`, `${JSON.stringify(counts)}\n`);
console.log(
  `${values.output}: ${ids.length} tokens from ${texts} texts, ${(bytes / ids.length).toFixed(2)} bytes each`,
);
