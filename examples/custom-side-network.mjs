// @ts-check
// Your own method: a side network that reads the frozen model's hidden states and corrects the last one. It implements the
// interface `Adapter`, so the library's trainer, evaluation, generation and planner work with it as with the built-in methods.
//
//   npm run build && node examples/custom-side-network.mjs
//
// Here s = Σ_i D_i · rmsNorm(H_i) over all hidden states, and y = H_L + U · silu(s) goes to the model's head. To try another
// network, change `start`: gradients flow through what is computed with `ops`, and not through `device.ops`.

import { Tape } from "@sidenet/autograd";
import {
  batchLoss,
  Decoder,
  encodeRecord,
  evaluateLoss,
  generate,
  loadWeights,
  makeBatch,
  planStep,
  residualStream,
  Trainer,
} from "@sidenet/ladder";
import { openModel } from "@sidenet/ladder/node";
import { formatBreakdown, ParamStore, Random } from "@sidenet/tensor";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";

/** @import { Adapter, SideAdapter, SidePass } from "@sidenet/ladder" */
/** @import { Ops, Tensor } from "@sidenet/tensor" */

const WIDTH = 32;
const STEPS = 40;
const TEXT =
  "Two households, both alike in dignity, in fair Verona, where we lay our scene, from ancient grudge break";

/** @implements {Adapter} @implements {SideAdapter} */
class SumOfStates {
  method = "sum-of-states";
  isRepeatable = true; // `start` depends on tensors alone: on a GPU, steps repeat their commands without calling it
  side = this;
  cacheShapes = () => []; // generation keeps nothing, since no position depends on another

  /** D_i [WIDTH, d] random and U [d, WIDTH] zero, so that training starts from the unchanged model. @param {Decoder} decoder */
  constructor({ device, config: { hiddenSize: d, numHiddenLayers: L, rmsNormEps } }) {
    this.eps = rmsNormEps;
    this.parameters = ParamStore.filled(device, "adapter", (store) => {
      for (let i = 0; i <= L; i++) {
        const values = () => new Random(1, i).normals(WIDTH * d, d ** -0.5); // a function, which is not called when planning
        store.add(`down.${i}`, device.tensor(values, [WIDTH, d]));
      }
      store.add("up", device.zeros([d, WIDTH]));
    });
  }

  /** One pass. `ops` is a tape in training, and the device's ops otherwise. @param {Ops} ops @returns {SidePass} */
  start(ops) {
    const { device } = this.parameters;
    /** @type {Tensor[]} */
    let state = []; // s so far
    return {
      observe: (i, h) => {
        const read = () => {
          const normed = device.ops.rmsNorm(h, null, { eps: this.eps }); // not recorded: the backbone is frozen
          const own = ops.linear(normed, this.parameters.get(`down.${i}`));
          return state.length > 0 ? ops.add(state[0], own) : own;
        };
        state = [device.scope(read, { consume: state })]; // frees all other tensors but those that the tape saved
      },
      finish: (h) => {
        const correct = () => ops.add(h, ops.linear(ops.silu(state[0]), this.parameters.get("up")));
        return device.scope(correct, { consume: state });
      },
    };
  }

  dispose() {
    this.parameters.dispose();
  }

  [Symbol.dispose]() {
    this.dispose();
  }
}

const { device } = await openDevice("auto");
const model = await openModel("tiny-books");
const tokenizer = await model.tokenizer();
const decoder = new Decoder(model.config, await loadWeights(device, model.config, model.checkpoint));
const record = encodeRecord({ text: TEXT }, "here", tokenizer, {
  bosId: null,
  eosId: null,
  maxLength: 64,
  cut: true,
});
const batch = makeBatch([record], 64);
const adapter = new SumOfStates(decoder);
console.log(
  `${decoder.weights.count} frozen parameters, ${adapter.parameters.count} trained, ${batch.length} tokens`,
);

const tape = new Tape(device, adapter.parameters);
const loss = device.scope(() =>
  batchLoss(decoder, tape, residualStream(decoder, adapter, decoder.prepare(batch), { ops: tape }), batch),
);
console.log(`the tape saved ${tape.savedBytes} bytes besides parameters:`);
for (const { op, tracked, saved } of tape.records) {
  const kept = saved.map(({ name, sizeBytes }) => `${name} (${sizeBytes} B)`).join(", ");
  console.log(`  ${op.padEnd(18)} gradient of ${tracked.join(", ").padEnd(8)} saves ${kept || "nothing"}`);
}
loss.dispose();
tape.dispose();

const { peakBytes } = planStep(model.config, {
  method: (planned) => new SumOfStates(planned),
  storage: { dtype: "f32" },
  memory: {},
  batchSize: 1,
  context: batch.length,
  profile: device.profile,
});
const trainer = new Trainer(decoder, adapter, { learningRate: () => 3e-3, weightDecay: 0 });
device.memory.resetPeak();
for (let step = 0; step < STEPS; step++) {
  const { loss } = await trainer.step(batch);
  if (step % 10 === 0 || step === STEPS - 1) console.log(`step ${step + 1}: loss ${loss.toFixed(4)}`);
}
const peak = device.memory.peak();
console.log(`peak memory: ${peakBytes} bytes planned, ${peak.peakBytes} measured`);
console.log(formatBreakdown(peak.byCategory));
console.log(`loss after the last step: ${(await evaluateLoss(decoder, adapter, [batch])).toFixed(4)}`);
const ids = await generate(decoder, adapter, tokenizer.encode("Two households,"), { maxTokens: 16 });
console.log(`Two households,▸${tokenizer.decode(ids)}`);

trainer.dispose();
adapter.dispose();
decoder.dispose();
await model.close();
device.dispose();
releaseDawn();
