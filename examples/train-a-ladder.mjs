// @ts-check
// Trains a Ladder side network beside the bundled model, which takes seconds: what `npm run demo` does, with the library.
//
//   npm run build && node examples/train-a-ladder.mjs [FOLDER]
//
// With a FOLDER, saves the adapter there, for `npx sidenet generate --model tiny-books --adapter FOLDER`.

import { mkdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import {
  Decoder,
  encodeRecord,
  evaluateLoss,
  inBatches,
  initializeAdapter,
  loadWeights,
  Trainer,
} from "@sidenet/ladder";
import { openModel, readRecords, saveAdapter } from "@sidenet/ladder/node";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";

const DATA = fileURLToPath(new URL("./data/shakespeare-sample.jsonl", import.meta.url));
const [BATCH_SIZE, MAX_LENGTH, STEPS] = [4, 64, 30];
const [folder] = parseArgs({ allowPositionals: true }).positionals;

const { device } = await openDevice("auto"); // a hardware GPU, else WebAssembly
const model = await openModel("tiny-books");
const tokenizer = await model.tokenizer();
const encoding = { bosId: null, eosId: null, maxLength: MAX_LENGTH, cut: true };
const rows = [];
for await (const { record, source } of readRecords(DATA)) {
  rows.push(encodeRecord(record, source, tokenizer, encoding));
}
const [heldOut, ...batches] = inBatches(rows, BATCH_SIZE, MAX_LENGTH);

const decoder = new Decoder(model.config, await loadWeights(device, model.config, model.checkpoint));
const adapter = await initializeAdapter({ method: "ladder", ladder: { reduction: 4 } }, decoder, model.name);
const trainer = new Trainer(decoder, adapter, { learningRate: () => 5e-3 });

const frozen = await evaluateLoss(decoder, null, [heldOut]); // null: without an adapter
for (let step = 0; step < STEPS; step++) {
  const { loss } = await trainer.step(batches[step % batches.length]);
  if (step % 10 === 9) console.log(`step ${step + 1}: loss ${loss.toFixed(4)}`);
}
const trained = await evaluateLoss(decoder, adapter, [heldOut]);
console.log(`held-out loss: ${frozen.toFixed(4)} (frozen model) → ${trained.toFixed(4)} (trained)`);
if (folder) {
  await mkdir(folder, { recursive: true });
  await saveAdapter(folder, adapter, model);
}

trainer.dispose(); // TypeScript, and Node from version 24, have `using` for this
adapter.dispose();
decoder.dispose();
await model.close();
device.dispose();
releaseDawn();
