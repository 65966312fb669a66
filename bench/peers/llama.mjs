// The model of the training step of bench/peers.mjs, the same for all peers: a small Llama with all weights trainable.

import { Random, sizeOf } from "@sidenet/tensor";

export const MODEL = { V: 2048, d: 256, L: 4, heads: 4, f: 768, B: 4, T: 128, eps: 1e-5, theta: 10000 };
export const ADAMW = { lr: 3e-4, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01 };

/** Shapes of the parameters by name. */
export function parameterShapes({ V, d, L, f } = MODEL) {
  const shapes = { embed: [V, d], norm: [d], head: [V, d] };
  for (let i = 0; i < L; i++) {
    for (const name of ["q", "k", "v", "o"]) shapes[`${name}${i}`] = [d, d];
    shapes[`gate${i}`] = [f, d];
    shapes[`up${i}`] = [f, d];
    shapes[`down${i}`] = [d, f];
    shapes[`norm${i}a`] = [d];
    shapes[`norm${i}b`] = [d];
  }
  return shapes;
}

/** Initial values: 1 for norms, normal with deviation 0.02 for matrices. */
export function initialValues(shape, stream) {
  if (shape.length === 1) return new Float32Array(shape[0]).fill(1);
  return new Random(0, stream).normals(sizeOf(shape)).map((x) => 0.02 * x);
}

/** Input tokens and their targets, the next tokens, [B, T] each. */
export function tokens({ V, B, T } = MODEL) {
  const ids = Int32Array.from({ length: B * (T + 1) }, (_, i) => (i * 7919 + (i >> 3) * 104729) % V);
  const rows = (shift) =>
    Int32Array.from({ length: B * T }, (_, i) => ids[Math.floor(i / T) * (T + 1) + (i % T) + shift]);
  return { inputs: rows(0), targets: rows(1) };
}

/** Cosines and sines of the rotary angles, [T, c/2] each. */
export function rotary({ T, d, heads, theta } = MODEL) {
  const half = d / heads / 2;
  const table = (f) =>
    Float32Array.from({ length: T * half }, (_, i) =>
      f(Math.floor(i / half) * theta ** (-(i % half) / half)),
    );
  return { cos: table(Math.cos), sin: table(Math.sin), half };
}
