// The computations of bench/peers.mjs with the WebGPU backend of TensorFlow.js.

import { createRequire } from "node:module";
import { ADAMW, initialValues, MODEL, parameterShapes, rotary, tokens } from "./llama.mjs";

const require = createRequire(import.meta.url);

/** Registers the backend on a device of the Dawn that sidenet uses. */
async function setUp(tf, WebGPUBackend) {
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  const names = [
    "maxComputeWorkgroupStorageSize",
    "maxComputeWorkgroupsPerDimension",
    "maxStorageBufferBindingSize",
    "maxBufferSize",
    "maxComputeWorkgroupSizeX",
    "maxComputeInvocationsPerWorkgroup",
  ];
  const requiredLimits = Object.fromEntries(names.map((name) => [name, adapter.limits[name]]));
  const gpu = await adapter.requestDevice({ requiredLimits });
  const backend = new WebGPUBackend(gpu, adapter.info);
  tf.registerBackend("webgpu-here", () => backend, 10);
  for (const kernel of tf.getKernelsForBackend("webgpu"))
    tf.registerKernel({ ...kernel, backendName: "webgpu-here" });
  await tf.setBackend("webgpu-here");
  await tf.ready();
  tf.env().set("WEBGPU_CPU_FORWARD", false); // else it computes small tensors on the CPU
  return { backend, gpu };
}

export async function openTfjs() {
  // Both as CommonJS, so that they share one tfjs-core.
  const tf = require("@tensorflow/tfjs-core");
  const { WebGPUBackend } = require("@tensorflow/tfjs-backend-webgpu");
  const { backend, gpu } = await setUp(tf, WebGPUBackend);
  const wait = async () => {
    if (backend.commandEncoder) {
      backend.endComputePassEncoder();
      backend.submitQueue();
    }
    await gpu.queue.onSubmittedWorkDone();
  };
  const array = ({ values, shape }) => tf.tensor(values, shape, "float32");
  const call = (compute, ...operands) => {
    const tensors = operands.map(array);
    const run = async () => {
      tf.tidy(() => compute(...tensors)).dispose();
      await wait();
    };
    run.values = async () => {
      const y = tf.tidy(() => compute(...tensors));
      const values = await y.data();
      y.dispose();
      return values;
    };
    return run;
  };
  return {
    name: "tfjs",
    label: `@tensorflow/tfjs-backend-webgpu ${require("@tensorflow/tfjs-backend-webgpu/package.json").version}`,
    matmul: (a, b, transposed) => call((x, w) => tf.matMul(x, w, false, transposed), a, b),
    attention: (q, k, v) => {
      const mask = causalMask(tf, q.shape[1]);
      return call((x, y, z) => attend(tf, x, y, z, mask), q, k, v);
    },
    rmsNorm: (x, gain) => call((y, g) => rmsNorm(tf, y, g, 1e-5), x, gain),
    softmax: (x) => call((y) => tf.softmax(y), x),
    siluMul: (gate, up) => call((g, u) => siluMul(tf, g, u), gate, up),
    transpose: (x) => call((y) => tf.transpose(y), x),
    manySmall: (a, count) => {
      const x = array(a);
      return async () => {
        tf.tidy(() => {
          let y = x;
          for (let i = 0; i < count; i++) y = tf.add(y, x);
          return y;
        }).dispose();
        await wait();
      };
    },
    smallOp: (count) => {
      const [a, b] = [0, 1].map(() => tf.tensor1d([1, 2, 3, 4]));
      return async () => {
        for (let i = 0; i < count; i++) tf.add(a, b).dispose();
        await wait();
      };
    },
    add: (a, b) => call((x, y) => tf.add(x, y), a, b),
    crossEntropy: (logits, labels) => {
      const y = tf.tensor1d(labels, "int32");
      return call((x) => crossEntropy(tf, x, y), logits);
    },
    trainingStep: () => trainingStep(tf, wait),
    close: () => gpu.destroy(),
  };
}

const siluMul = (tf, gate, up) => tf.mul(tf.mul(gate, tf.sigmoid(gate)), up);

const rmsNorm = (tf, x, gain, eps) =>
  tf.mul(tf.mul(x, tf.rsqrt(tf.add(tf.mean(tf.square(x), -1, true), eps))), gain);

/** [1,1,T,T]: 0 for visible keys, -1e9 for the others. */
function causalMask(tf, T) {
  const values = Float32Array.from({ length: T * T }, (_, i) => (i % T <= Math.floor(i / T) ? 0 : -1e9));
  return tf.tensor(values, [1, 1, T, T]);
}

/** Attention; operands and result are [B,T,heads,c]. */
function attend(tf, q, k, v, mask) {
  const heads = (x) => tf.transpose(x, [0, 2, 1, 3]);
  const scores = tf.mul(tf.matMul(heads(q), heads(k), false, true), 1 / Math.sqrt(q.shape[3]));
  return tf.transpose(tf.matMul(tf.softmax(tf.add(scores, mask)), heads(v)), [0, 2, 1, 3]);
}

function crossEntropy(tf, logits, labels) {
  const [n, V] = logits.shape;
  const hot = tf.cast(tf.oneHot(labels, V), "float32");
  return tf.mul(tf.sum(tf.mul(tf.logSoftmax(logits), hot)), -1 / n);
}

function rotate(tf, x, cos, sin) {
  const [low, high] = tf.split(x, 2, -1);
  const turned = [tf.sub(tf.mul(low, cos), tf.mul(high, sin)), tf.add(tf.mul(high, cos), tf.mul(low, sin))];
  return tf.concat(turned, -1);
}

function trainingStep(tf, wait) {
  const { B, T, d, heads, L, eps } = MODEL;
  const params = Object.fromEntries(
    Object.entries(parameterShapes()).map(([name, shape], i) => [
      name,
      tf.variable(tf.tensor(initialValues(shape, i), shape), true, name),
    ]),
  );
  const { inputs, targets } = tokens();
  const { cos, sin, half } = rotary();
  const angles = (values) => tf.tensor(values, [1, T, 1, half]);
  const [cosines, sines] = [angles(cos), angles(sin)];
  const ids = tf.tensor1d(inputs, "int32");
  const labels = tf.tensor1d(targets, "int32");
  const mask = causalMask(tf, T);
  const linear = (x, name) => tf.matMul(tf.reshape(x, [B * T, -1]), params[name], false, true);
  const forward = () => {
    let x = tf.gather(params.embed, ids);
    for (let i = 0; i < L; i++) {
      const h = rmsNorm(tf, x, params[`norm${i}a`], eps);
      const split = (name) => tf.reshape(linear(h, `${name}${i}`), [B, T, heads, d / heads]);
      const [q, k] = [rotate(tf, split("q"), cosines, sines), rotate(tf, split("k"), cosines, sines)];
      x = tf.add(x, linear(attend(tf, q, k, split("v"), mask), `o${i}`));
      const g = rmsNorm(tf, x, params[`norm${i}b`], eps);
      x = tf.add(x, linear(siluMul(tf, linear(g, `gate${i}`), linear(g, `up${i}`)), `down${i}`));
    }
    return crossEntropy(tf, linear(rmsNorm(tf, x, params.norm, eps), "head"), labels);
  };
  const { lr, betas, eps: adamEps, weightDecay } = ADAMW;
  const adam = tf.train.adam(lr, ...betas, adamEps);
  return async () => {
    const { value, grads } = tf.variableGrads(forward);
    tf.tidy(() => {
      for (const p of Object.values(params)) p.assign(tf.mul(p, 1 - lr * weightDecay));
    });
    adam.applyGradients(grads);
    for (const gradient of Object.values(grads)) gradient.dispose();
    await wait();
    const loss = (await value.data())[0];
    value.dispose();
    return loss;
  };
}
