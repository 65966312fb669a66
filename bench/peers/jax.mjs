// The computations of bench/peers.mjs with jax-js, each compiled by its jit.

import { ADAMW, initialValues, MODEL, parameterShapes, rotary, tokens } from "./llama.mjs";
import { installPageWorker } from "./web-worker.mjs";

/** Adds the iterator helpers, which jax-js uses and Node 20 lacks. */
function addIteratorHelpers() {
  const prototype = Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]()));
  prototype.map ??= function* (change) {
    let i = 0;
    for (const item of this) yield change(item, i++);
  };
  prototype.filter ??= function* (keep) {
    let i = 0;
    for (const item of this) if (keep(item, i++)) yield item;
  };
  prototype.toArray ??= function () {
    return [...this];
  };
}

export async function openJax({ device, threads }) {
  if (device === "wasm") installPageWorker(threads);
  addIteratorHelpers();
  const jax = await import("@jax-js/jax");
  await jax.init(device);
  jax.defaultDevice(device);
  const { numpy: np, nn, jit } = jax;
  const array = ({ values, shape }) => np.array(values.slice()).reshape(shape);
  /** A call that waits for its result and frees it, but not its operands; `values` returns the result instead. */
  const call = (compute, ...operands) => {
    const arrays = operands.map((operand) => (operand.values ? array(operand) : operand));
    const compiled = jit(compute);
    const run = async () => {
      const y = compiled(...arrays.map((x) => x.ref));
      await y.blockUntilReady();
      y.dispose();
    };
    run.values = async () => await compiled(...arrays.map((x) => x.ref)).data();
    return run;
  };
  return {
    name: "jax-js",
    label: `@jax-js/jax 0.1.25, ${device}${device === "wasm" ? `, ${threads} threads` : ""}`,
    matmul: (a, b, transposed) => call((x, w) => np.matmul(x, transposed ? w.transpose() : w), a, b),
    attention: (q, k, v) => call((x, y, z) => nn.dotProductAttention(x, y, z, { isCausal: true }), q, k, v),
    rmsNorm: (x, gain) => call((y, g) => rmsNorm(np, y, g, 1e-5), x, gain),
    transpose: (x) => call((y) => y.transpose().add(0), x), // +0 makes a copy: a transposed view computes nothing
    crossEntropy: (logits, labels) => {
      const [n, V] = logits.shape;
      const ids = np.array(labels);
      return call(
        (x, y) =>
          nn
            .logSoftmax(x, -1)
            .mul(nn.oneHot(y, V))
            .sum()
            .mul(-1 / n),
        logits,
        ids,
      );
    },
    manySmall: (a, count) => {
      const x = array(a);
      const add = jit((y, z) => y.add(z));
      return async () => {
        let y = x.ref;
        for (let i = 0; i < count; i++) y = add(y, x.ref);
        await y.blockUntilReady();
        y.dispose();
      };
    },
    smallOp: (count) => {
      const [a, b] = [0, 1].map(() => np.array([1, 2, 3, 4]));
      const add = jit((x, y) => x.add(y));
      return async () => {
        // All sums are kept until the end, since jax-js never computes what is disposed before.
        const sums = Array.from({ length: count }, () => add(a.ref, b.ref));
        await jax.blockUntilReady(sums.map((sum) => sum.ref));
        for (const sum of sums) sum.dispose();
      };
    },
    add: (a, b) => call((x, y) => x.add(y), a, b),
    softmax: (x) => call((y) => nn.softmax(y, -1), x),
    siluMul: (gate, up) => call((g, u) => nn.silu(g).mul(u), gate, up),
    trainingStep: () => trainingStep(jax),
    close: () => {},
  };
}

function rmsNorm(np, x, gain, eps) {
  const mean = np.mean(np.square(x.ref), -1, { keepdims: true });
  return x.mul(np.reciprocal(np.sqrt(mean.add(eps)))).mul(gain);
}

function rotate(np, x, cos, sin) {
  const { T, heads, d } = MODEL;
  const half = d / heads / 2;
  const [low, high] = np.split(x, 2, -1);
  const shape = [1, T, 1, half];
  const [c, s] = [cos.reshape(shape), sin.reshape(shape)];
  return np.concatenate([low.ref.mul(c.ref).sub(high.ref.mul(s.ref)), high.mul(c).add(low.mul(s))], -1);
}

/**
 * The loss as a function of parameters and batch. Its parts are compiled one by one: compiled as a whole, the step runs at a
 * third of this speed, and without jit at half.
 */
function makeLoss({ numpy: np, nn, jit }) {
  const { B, T, d, heads, L, V, eps } = MODEL;
  const linear = jit((x, w) => np.matmul(x, w.transpose()));
  const norm = jit((x, gain) => rmsNorm(np, x, gain, eps));
  const rotated = jit((x, cos, sin) => rotate(np, x, cos, sin));
  const attend = jit((q, k, v) => nn.dotProductAttention(q, k, v, { isCausal: true }));
  const siluMul = jit((gate, up) => nn.silu(gate).mul(up));
  const add = jit((a, b) => a.add(b));
  const meanLoss = jit((logits, labels) =>
    nn
      .logSoftmax(logits, -1)
      .mul(nn.oneHot(labels, V))
      .sum()
      .mul(-1 / (B * T)),
  );
  return (p, { ids, labels, cos, sin }) => {
    // A matmul with one-hot rows, since the gradient of a lookup is a scatter, which jit does not support.
    let x = np.matmul(nn.oneHot(ids, V), p.embed).reshape([B, T, d]);
    for (let i = 0; i < L; i++) {
      const h = norm(x.ref, p[`norm${i}a`]);
      const split = (name, input) => linear(input, p[`${name}${i}`]).reshape([B, T, heads, d / heads]);
      const q = rotated(split("q", h.ref), cos.ref, sin.ref);
      const k = rotated(split("k", h.ref), cos.ref, sin.ref);
      const y = attend(q, k, split("v", h));
      x = add(x, linear(y.reshape([B, T, d]), p[`o${i}`]));
      const g = norm(x.ref, p[`norm${i}b`]);
      const inner = siluMul(linear(g.ref, p[`gate${i}`]), linear(g, p[`up${i}`]));
      x = add(x, linear(inner, p[`down${i}`]));
    }
    cos.dispose();
    sin.dispose();
    const last = norm(x, p.norm).reshape([B * T, d]);
    return meanLoss(linear(last, p.head), labels);
  };
}

/** AdamW for one parameter. */
function makeUpdate({ numpy: np, jit }) {
  const { lr, betas, eps, weightDecay } = ADAMW;
  return jit((p, m, v, g, rate, correction) => {
    const mean = m.mul(betas[0]).add(g.ref.mul(1 - betas[0]));
    const square = v.mul(betas[1]).add(np.square(g).mul(1 - betas[1]));
    const root = np.sqrt(square.ref.mul(correction)).add(eps);
    const value = p.mul(1 - lr * weightDecay).sub(mean.ref.mul(rate).div(root));
    return [value, mean, square];
  });
}

function trainingStep(jax) {
  const { numpy: np, valueAndGrad, tree } = jax;
  const { lr, betas } = ADAMW;
  const { B, T } = MODEL;
  const shapes = Object.entries(parameterShapes());
  const make = (values) => Object.fromEntries(shapes.map(([name, shape], i) => [name, values(shape, i)]));
  const params = make((shape, i) => np.array(initialValues(shape, i)).reshape(shape));
  const [m, v] = [0, 0].map(() => make((shape) => np.zeros(shape)));
  const { inputs, targets } = tokens();
  const { cos, sin, half } = rotary();
  const batch = {
    ids: np.array(inputs).reshape([B * T]),
    labels: np.array(targets),
    cos: np.array(cos).reshape([T, half]),
    sin: np.array(sin).reshape([T, half]),
  };
  const lossOf = makeLoss(jax);
  const update = makeUpdate(jax);
  let t = 0;
  return async () => {
    t++;
    const rate = np.array([lr / (1 - betas[0] ** t)]);
    const correction = np.array([1 / (1 - betas[1] ** t)]);
    const [loss, gradients] = valueAndGrad(lossOf)(tree.ref(params), tree.ref(batch));
    for (const [name] of shapes) {
      const args = [params[name], m[name], v[name], gradients[name], rate.ref, correction.ref];
      [params[name], m[name], v[name]] = update(...args);
    }
    rate.dispose();
    correction.dispose();
    await jax.blockUntilReady(tree.ref(params));
    return (await loss.data())[0];
  };
}
