// The computations of bench/peers.mjs with sidenet.

import { AdamW, Tape } from "@sidenet/autograd";
import { ParamStore } from "@sidenet/tensor";
import { openNodeWasm, openNodeWebGpu } from "@sidenet/tensor/node";
import { ADAMW, initialValues, MODEL, parameterShapes, rotary, tokens } from "./llama.mjs";

export async function openSidenet({ device: kind, threads }) {
  const device = kind === "webgpu" ? await openNodeWebGpu() : await openNodeWasm({ threads });
  const { ops } = device;
  const array = ({ values, shape }) => device.tensor(values, shape);
  /** A call that waits for its result and frees it; `values` returns the result instead. */
  const call = (compute) => {
    const run = async () => {
      const y = device.scope(compute);
      y.dispose();
      await device.synchronize();
    };
    run.values = async () => {
      const y = device.scope(compute);
      try {
        return await y.read();
      } finally {
        y.dispose();
      }
    };
    return run;
  };
  return {
    name: "sidenet",
    label: device.label,
    matmul: (a, b, transposed) => {
      const [x, w] = [array(a), array(b)];
      return call(() => (transposed ? ops.matmulNT(x, w) : ops.matmul(x, w)));
    },
    attention: (q, k, v) => {
      const tensors = [q, k, v].map(array);
      return call(() => ops.attention(...tensors));
    },
    rmsNorm: (x, gain) => {
      const tensors = [x, gain].map(array);
      return call(() => ops.rmsNorm(...tensors));
    },
    transpose: (x) => {
      const tensor = array(x);
      return call(() => ops.transpose(tensor, { permutation: [1, 0] }));
    },
    crossEntropy: (logits, labels) => {
      const [x, y] = [array(logits), device.tensor(labels, [labels.length], { dtype: "i32" })];
      return call(() => ops.crossEntropy(x, y));
    },
    add: (a, b) => {
      const [x, y] = [array(a), array(b)];
      return call(() => ops.add(x, y));
    },
    ...smallOps(device, array),
    softmax: (x) => {
      const tensor = array(x);
      return call(() => ops.softmax(tensor));
    },
    siluMul: (gate, up) => {
      const tensors = [gate, up].map(array);
      return call(() => ops.siluMul(...tensors));
    },
    trainingStep: () => trainingStep(device),
    close: () => device.dispose(),
  };
}

/** Ops so small that only the overhead of a call counts: in a chain, and independent of each other. */
function smallOps(device, array) {
  const { ops } = device;
  return {
    manySmall: (a, count) => {
      const x = array(a);
      return async () => {
        let y = x;
        for (let i = 0; i < count; i++) {
          const next = ops.add(y, x);
          if (y !== x) y.dispose();
          y = next;
        }
        y.dispose();
        await device.synchronize();
      };
    },
    smallOp: (count) => {
      const [a, b] = [0, 1].map(() => device.tensor([1, 2, 3, 4], [4]));
      return async () => {
        for (let i = 0; i < count; i++) ops.add(a, b).dispose();
        await device.synchronize();
      };
    },
  };
}

function trainingStep(device) {
  const { B, T, d, heads, L, eps } = MODEL;
  const store = new ParamStore(device, "adapter");
  for (const [i, [name, shape]] of Object.entries(parameterShapes()).entries()) {
    store.add(name, device.tensor(initialValues(shape, i), shape));
  }
  const { lr, betas, eps: adamEps, weightDecay } = ADAMW;
  const adamw = new AdamW(store, { betas, eps: adamEps, weightDecay });
  const { inputs, targets } = tokens();
  const ids = device.tensor(inputs, [B, T], { dtype: "i32" });
  const labels = device.tensor(targets, [B * T], { dtype: "i32" });
  const { cos, sin, half } = rotary();
  const [cosines, sines] = [device.tensor(cos, [T, half]), device.tensor(sin, [T, half])];
  const p = (name) => store.get(name);
  const forward = (tape) => {
    let x = tape.embedding(ids, p("embed"));
    for (let i = 0; i < L; i++) {
      const h = tape.rmsNorm(x, p(`norm${i}a`), { eps });
      const split = (name) =>
        tape.reshape(tape.linear(h, p(`${name}${i}`)), { shape: [B, T, heads, d / heads] });
      const y = tape.attention(
        tape.rope(split("q"), cosines, sines),
        tape.rope(split("k"), cosines, sines),
        split("v"),
      );
      x = tape.add(x, tape.linear(tape.reshape(y, { shape: [B, T, d] }), p(`o${i}`)));
      const g = tape.rmsNorm(x, p(`norm${i}b`), { eps });
      const inner = tape.siluMul(tape.linear(g, p(`gate${i}`)), tape.linear(g, p(`up${i}`)));
      x = tape.add(x, tape.linear(inner, p(`down${i}`)));
    }
    const last = tape.rmsNorm(x, p("norm"), { eps });
    return tape.lmHeadLoss(tape.reshape(last, { shape: [B * T, d] }), p("head"), labels);
  };
  return async () => {
    const loss = device.scope(() => {
      const tape = new Tape(device, store);
      const value = device.scope(() => forward(tape));
      adamw.step(tape.backward(value), { lr });
      tape.dispose();
      return value;
    });
    const result = await loss.item();
    loss.dispose();
    return result;
  };
}
