import { EPS, type HostArray } from "../dtype.ts";
import { defineOp } from "../op.ts";
import type { Dims } from "../signature.ts";
import type { TestRandom } from "../test-random.ts";
import { runAttention, runAttentionBackwardKV, runAttentionBackwardQ } from "./attention-dispatch.ts";
import type { AttentionExtents } from "./attention-kernels.ts";
import { withPaddedHeads } from "./attention-padding.ts";

/** The maximum score of a query without visible keys: finite, but lower than any score. */
const NOTHING_VISIBLE = -3.0e38;

/** The causal rule and the scale of scores. */
export interface AttentionAttrs {
  /** Query t attends to keys s <= t + queryOffset: S shows every key. */
  queryOffset: number;
  /** Factor of q·k; null: 1 / sqrt(D). */
  scale: number | null;
}

/**
 * lse, the log-sum-exp of a query's scores, is stored as two numbers: the maximum score, and the logarithm of the sum of
 * exp(score - maximum). In their sum, a score of thousands would round the logarithm away.
 */
const PARTS = 2;

const scaleOf = ({ scale }: AttentionAttrs, D: number): number => scale ?? 1 / Math.sqrt(D);
const attrs: AttentionAttrs = { queryOffset: 0, scale: null };
const ranges = { queryOffset: { whole: true } };

/** What kernels compute with. An offset of -T shows no key and one of S shows all: a larger one is not needed, nor 64 bits for it. */
export const extentsOf = ({ B, T, S, G, H, D }: Dims, a: AttentionAttrs): AttentionExtents => {
  const queryOffset = Math.max(-T, Math.min(S, a.queryOffset));
  return { B, T, S, G, H, D, queryOffset, scale: scaleOf(a, D) };
};

function check(
  { T, S, H, G, P = PARTS }: Dims,
  { queryOffset }: AttentionAttrs,
  has: (input: string) => boolean,
): string | null {
  if (P !== PARTS) return `lse has P=${P} parts instead of ${PARTS}`;
  if (G <= 0 || H % G !== 0) return `H=${H} query heads do not share G=${G} key heads evenly`;
  if (!has("segments") || (queryOffset >= 0 && T + queryOffset <= S)) return null;
  return (
    `segments has the positions 0 .. S=${S} of the keys, and the queries are at ${queryOffset} .. ${T + queryOffset} ` +
    "(queryOffset .. queryOffset + T)"
  );
}

interface Mask {
  readonly keyMask: HostArray | null;
  readonly segments: HostArray | null;
}

/** Calls `visit` for each key that is visible to query (b, t). */
function forVisible(
  { keyMask, segments }: Mask,
  b: number,
  t: number,
  { S }: Dims,
  { queryOffset }: AttentionAttrs,
  visit: (s: number) => void,
): void {
  const own = segments?.[b * S + t + queryOffset];
  for (let s = 0; s < S && s <= t + queryOffset; s++) {
    if (keyMask?.[b * S + s] !== 0 && segments?.[b * S + s] === own) visit(s);
  }
}

function dot(a: HostArray, at: number, b: HostArray, bt: number, D: number): number {
  let sum = 0;
  for (let c = 0; c < D; c++) sum += a[at + c] * b[bt + c];
  return sum;
}

/** Query-key pairs of one head that the causal rule makes visible, for counting operations. */
function pairs({ T, S }: Dims, { queryOffset }: AttentionAttrs): number {
  let count = 0;
  for (let t = 0; t < T; t++) count += Math.max(0, Math.min(S, t + queryOffset + 1));
  return count;
}

/** Segment ids of any sign, in runs as packed sequences have them. */
function drawSegments(pick: TestRandom): (size: number) => Int32Array {
  const change = pick.oneOf([0, 0.05, 0.3, 1]);
  return (size) => {
    let id = 0;
    return Int32Array.from({ length: size }, () => {
      if (pick.chance(change)) id = pick.int(-3, 3);
      return id;
    });
  };
}

function drawAttention(pick: TestRandom) {
  const G = pick.int(1, 3);
  const T = pick.chance(0.2) ? 1 : pick.chance(0.08) ? pick.oneOf([63, 64, 65, 129]) : pick.int(1, 40);
  const S = T + pick.oneOf([0, 0, pick.int(0, 20)]);
  const dims = {
    B: pick.int(1, 3),
    T,
    S,
    G,
    H: G * pick.int(1, 3),
    D: pick.oneOf([1, 6, 8, 10, 16, 33, 64, 72, 160, pick.oneOf([150, 258])]),
  };
  return {
    dims,
    attrs: { queryOffset: pick.oneOf([0, S - T]), scale: pick.oneOf([null, 0.25]) },
    omit: [...(pick.chance(0.5) ? ["keyMask"] : []), ...(pick.chance(0.5) ? ["segments"] : [])],
    values: { keyMask: (size: number) => pick.ints(size, 0, 1), segments: drawSegments(pick) },
  };
}

export const attention = defineOp({
  name: "attention",
  doc:
    "causal attention with grouped heads: y[t,h] = Σ_s softmax_s(scale · q[t,h]·k[s,g]) v[s,g], g = floor(h / (H/G)), over " +
    "keys s <= t + queryOffset with keyMask[s] = 1 and, in a packed sequence, segments[s] = segments[t + queryOffset]: a " +
    "query is at position t + queryOffset of the keys; without segments, queryOffset = S shows every key, as bidirectional " +
    "and cross-attention need; a query without visible keys gives 0; lse holds the maximum score " +
    "and the log of Σ exp(score - maximum)",
  sig: "q[B,T,H,D] k[B,S,G,D] v[B,S,G,D] keyMask?:u8[B,S] segments?:i32[B,S] -> y[B,T,H,D] | lse:f32[B,T,H,P]",
  attrs,
  ranges,
  check,
  infer: ([q]) => ({ outputs: [q, { shape: [...q.shape.slice(0, 3), PARTS], dtype: "f32" }] }),
  reference({ q, k, v, y, lse, ...mask }, dims, a) {
    const { B, T, S, G, H, D } = dims;
    for (let b = 0; b < B; b++) {
      for (let t = 0; t < T; t++) {
        for (let h = 0; h < H; h++) {
          const row = (b * T + t) * H + h;
          const keyAt = (s: number) => ((b * S + s) * G + Math.floor(h / (H / G))) * D;
          const scores: [number, number][] = [];
          forVisible(mask, b, t, dims, a, (s) =>
            scores.push([s, scaleOf(a, D) * dot(q, row * D, k, keyAt(s), D)]),
          );
          if (lse) lse[2 * row] = NOTHING_VISIBLE;
          if (scores.length === 0) continue;
          const max = Math.max(...scores.map(([, score]) => score));
          const total = scores.reduce((sum, [, score]) => sum + Math.exp(score - max), 0);
          if (lse) {
            lse[2 * row] = max;
            lse[2 * row + 1] = Math.log(total);
          }
          for (let c = 0; c < D; c++) {
            let sum = 0;
            for (const [s, score] of scores) sum += (Math.exp(score - max) / total) * v[keyAt(s) + c];
            y[row * D + c] = sum;
          }
        }
      }
    }
  },
  kernel: (k, { q, k: key, v, y, ...io }, dims, a) =>
    withPaddedHeads(k, extentsOf(dims, a), { q, k: key, v }, { y }, (operands, extents) =>
      runAttention(k, { ...io, ...operands }, extents),
    ),
  draw: drawAttention,
  close: ({ D, S }) => ({ rel: (32 + 2 * D + S) * EPS, abs: 1e-6 }), // scores sum D products, outputs S
  flops: (dims, a) => 4 * dims.B * dims.H * dims.D * pairs(dims, a),
});

/** Visits the visible pairs with p[s] = exp(score - lse) and ds[s] = p (dy·v[s] - dy·y), which all gradients share. */
function forGradients(
  io: {
    dy: HostArray;
    q: HostArray;
    k: HostArray;
    v: HostArray;
    y: HostArray;
    lse: HostArray;
  } & Mask,
  dims: Dims,
  a: AttentionAttrs,
  visit: (row: number, keyAt: number, p: number, ds: number) => void,
): void {
  const { B, T, S, G, H, D } = dims;
  for (let b = 0; b < B; b++) {
    for (let t = 0; t < T; t++) {
      for (let h = 0; h < H; h++) {
        const row = (b * T + t) * H + h;
        const delta = dot(io.dy, row * D, io.y, row * D, D);
        forVisible(io, b, t, dims, a, (s) => {
          const keyAt = ((b * S + s) * G + Math.floor(h / (H / G))) * D;
          const score = scaleOf(a, D) * dot(io.q, row * D, io.k, keyAt, D);
          const p = Math.exp(score - io.lse[2 * row] - io.lse[2 * row + 1]);
          visit(row, keyAt, p, p * (dot(io.dy, row * D, io.v, keyAt, D) - delta));
        });
      }
    }
  }
}

/** Draws y and lse near those of a forward pass, so that p stays a probability. A logarithm of 0 means that one key has all the weight. */
function drawBackward(pick: TestRandom) {
  const drawn = drawAttention(pick);
  const lse = (size: number) =>
    Array.from({ length: size }, (_, i) =>
      i % PARTS === 0 ? 1 + 0.1 * pick.normal() : Math.log(1 + drawn.dims.S),
    );
  const small = (size: number) => pick.normals(size, 0.5);
  return {
    ...drawn,
    dims: { ...drawn.dims, P: PARTS },
    values: { ...drawn.values, lse, q: small, k: small },
  };
}

const backwardClose = ({ D, S, T }: Dims) => ({ rel: (64 + 2 * D + S + T) * EPS, abs: 1e-6 });

export const attentionBackwardQ = defineOp({
  name: "attentionBackwardQ",
  doc: "dq[t,h] = scale · Σ_s p (dy·v[s] - dy·y) k[s], with p recomputed from lse",
  sig: "dy[B,T,H,D] q[B,T,H,D] k[B,S,G,D] v[B,S,G,D] y[B,T,H,D] lse:f32[B,T,H,P] keyMask?:u8[B,S] segments?:i32[B,S] -> dq[B,T,H,D]",
  attrs,
  ranges,
  check,
  reference(io, dims, a) {
    const { D } = dims;
    forGradients(io, dims, a, (row, keyAt, _, ds) => {
      for (let c = 0; c < D; c++) io.dq[row * D + c] += scaleOf(a, D) * ds * io.k[keyAt + c];
    });
  },
  kernel: (k, { dy, q, k: key, v, y, dq, ...io }, dims, a) =>
    withPaddedHeads(k, extentsOf(dims, a), { dy, q, k: key, v, y }, { dq }, (operands, extents) =>
      runAttentionBackwardQ(k, { ...io, ...operands }, extents),
    ),
  draw: drawBackward,
  close: backwardClose,
  flops: (dims, a) => 6 * dims.B * dims.H * dims.D * pairs(dims, a),
});

export const attentionBackwardKV = defineOp({
  name: "attentionBackwardKV",
  doc: "dk[s] = scale · Σ p (dy·v[s] - dy·y) q[t,h] and dv[s] = Σ p dy[t,h], over queries t to which s is visible and heads h of the group",
  sig: "dy[B,T,H,D] q[B,T,H,D] k[B,S,G,D] v[B,S,G,D] y[B,T,H,D] lse:f32[B,T,H,P] keyMask?:u8[B,S] segments?:i32[B,S] -> dk[B,S,G,D] dv[B,S,G,D]",
  attrs,
  ranges,
  check,
  reference(io, dims, a) {
    const { D } = dims;
    forGradients(io, dims, a, (row, keyAt, p, ds) => {
      for (let c = 0; c < D; c++) {
        io.dk[keyAt + c] += scaleOf(a, D) * ds * io.q[row * D + c];
        io.dv[keyAt + c] += p * io.dy[row * D + c];
      }
    });
  },
  kernel: (k, { dy, q, k: key, v, y, dk, dv, ...io }, dims, a) =>
    withPaddedHeads(k, extentsOf(dims, a), { dy, q, k: key, v, y }, { dk, dv }, (operands, extents) =>
      runAttentionBackwardKV(k, { ...io, ...operands }, extents),
    ),
  draw: drawBackward,
  close: backwardClose,
  flops: (dims, a) => 8 * dims.B * dims.H * dims.D * pairs(dims, a),
});
