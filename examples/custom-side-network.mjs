// @ts-check
// A side network of one's own: it reads the frozen model's hidden states and corrects the last of them. The model
// computes with the device's ops, which record nothing; the side network with a tape, which records only it.
//
//   npm run build && node examples/custom-side-network.mjs
//
// Here s = Σ_i D_i · rmsNorm(H_i) over all hidden states, and y = H_L + U · silu(s) goes to the model's head. Write your own
// into `lossOf`: what is computed with the tape is trained, what is computed with `device.ops` is not.

import { AdamW, clipGlobalNorm, Tape } from "@sidenet/autograd";
import { Decoder, loadWeights, shiftLabels } from "@sidenet/ladder";
import { openModel } from "@sidenet/ladder/node";
import { formatBreakdown, ParamStore, Random } from "@sidenet/tensor";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";

const WIDTH = 32;
const STEPS = 40;
const TEXT =
  "Two households, both alike in dignity, in fair Verona, where we lay our scene, from ancient grudge break";

const { device } = await openDevice("auto");
const model = await openModel("tiny-books");
const decoder = new Decoder(model.config, await loadWeights(device, model.config, model.checkpoint));
const { hiddenSize: d, numHiddenLayers: L } = model.config;

// What is trained: D_i [WIDTH, d] at random, U [d, WIDTH] zero, so that training starts from the model as it is.
const side = new ParamStore(device, "adapter");
for (let i = 0; i <= L; i++) {
  const values = new Random(1, i).normals(WIDTH * d, d ** -0.5);
  side.set(`down.${i}`, device.tensor(values, [WIDTH, d]));
}
side.set("up", device.zeros([d, WIDTH]));

const inputIds = (await model.tokenizer()).encode(TEXT);
const length = inputIds.length;

/** @param {Tape} tape */
function lossOf(tape) {
  const forward = decoder.prepare({ inputIds, batchSize: 1, length, attentionMask: null });
  const targets = device.tensor(shiftLabels(inputIds, 1, length), [length], { dtype: "i32" });
  let read = device.zeros([1, length, WIDTH]);
  const observe = (/** @type {number} */ i, /** @type {import("@sidenet/tensor").Tensor} */ h) => {
    const normed = device.ops.rmsNorm(h, null, { eps: 1e-5 }); // h is freed when the next block has read it
    read = tape.add(read, tape.linear(normed, side.get(`down.${i}`)));
  };
  const h = decoder.hidden(device.ops, forward, { observe });
  const y = tape.add(h, tape.linear(tape.silu(read), side.get("up")));
  return decoder.loss(tape, y, targets);
}

const adamw = new AdamW(side, { weightDecay: 0 });
for (let step = 0; step < STEPS; step++) {
  const tape = new Tape(device, side);
  const loss = device.scope(() => lossOf(tape)); // what the tape did not save is freed here
  if (step === 0) {
    console.log(`${decoder.weights.count} frozen parameters, ${side.count} trained, ${length} tokens`);
    console.log(`the tape holds ${tape.savedBytes} bytes besides parameters:`);
    for (const { op, tracked, saved } of tape.records) {
      const kept = saved.map(({ name, sizeBytes }) => `${name} (${sizeBytes} B)`).join(", ");
      console.log(
        `  ${op.padEnd(18)} gradient of ${tracked.join(", ").padEnd(8)} keeps ${kept || "nothing"}`,
      );
    }
  }
  device.scope(() => {
    const gradients = tape.backward(loss);
    adamw.step(gradients, { lr: 3e-3, gradScale: clipGlobalNorm(gradients, 1).factor });
  });
  if (step % 10 === 0 || step === STEPS - 1)
    console.log(`step ${step + 1}: loss ${(await loss.item()).toFixed(4)}`);
  loss.dispose();
  tape.dispose();
}
console.log(`peak of memory: ${formatBreakdown(device.memory.peak().byCategory)}`);

adamw.dispose();
side.dispose();
decoder.dispose();
await model.close();
device.dispose();
releaseDawn();
