// @ts-check
// A side network of one's own: it reads the frozen model's hidden states and corrects the last of them. The model
// computes with the device's ops, which record nothing; the side network with a tape, which records only it.
//
//   npm run build && node examples/custom-side-network.mjs
//
// The network is a weighted reading of all states, s = Σ_i D_i H_i, and y = H_L + U · silu(s). Replace `sideNetwork` by
// yours: any function of ops and states will do.

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

/**
 * y [B,T,d] of the hidden states H_0 .. H_L, each [B,T,d].
 * @param {import("@sidenet/tensor").Ops} ops a tape to train, a device's ops to run
 * @param {import("@sidenet/tensor").Tensor[]} states
 */
function sideNetwork(ops, states) {
  const read = states
    .map((h, i) => ops.linear(device.ops.rmsNorm(h, null, { eps: 1e-5 }), side.get(`down.${i}`)))
    .reduce((sum, term) => ops.add(sum, term));
  return ops.add(states[L], ops.linear(ops.silu(read), side.get("up")));
}

const inputIds = (await model.tokenizer()).encode(TEXT);
const length = inputIds.length;

/** @param {Tape} tape */
function lossOf(tape) {
  const forward = decoder.prepare({ inputIds, batchSize: 1, length, attentionMask: null });
  const targets = device.tensor(shiftLabels(inputIds, 1, length), [length], { dtype: "i32" });
  /** @type {import("@sidenet/tensor").Tensor[]} */
  const states = [];
  decoder.hidden(device.ops, forward, { observe: (_, h) => states.push(device.retain(h)) });
  return decoder.loss(tape, sideNetwork(tape, states), targets);
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
    adamw.step(gradients, { lr: 3e-3, gradScale: clipGlobalNorm(device, gradients, 1).factor });
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
