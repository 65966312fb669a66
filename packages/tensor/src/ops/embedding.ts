import { EPS, type HostArray } from "../dtype.ts";
import { defineOp, type KernelContext, NO_ROWS } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";
import { operandWindow, type Panels, splitOperand } from "./panels.ts";

/** Dispatches y[n] = table[ids[n]], with zeros for an id outside the table. */
export function runGather(
  k: KernelContext,
  { ids, table, y }: { ids: Tensor; table: Tensor | Panels; y: Tensor },
  { N, V, C }: { N: number; V: number; C: number },
): void {
  const windows = V === 0 ? [NO_ROWS] : splitOperand(k, table, V);
  for (const tokens of k.split(N, [y])) {
    const bind = { ids, y: k.rows(y, N, tokens) };
    for (const range of windows) {
      k.run("embedding/forward", {
        bind: { ...bind, table: operandWindow(k, table, V, range) },
        // A dispatch leaves rows of other windows alone; the first window writes zeros for ids that no window has.
        params: {
          n: tokens.count,
          firstToken: tokens.start,
          c: C,
          first: range.start,
          count: range.count,
          v: V,
          isFirst: range.start === 0,
        },
        grid: tokens.count,
      });
    }
  }
}

/** The reference of y[n] = table[ids[n]]. */
export function referenceGather(
  { ids, table, y }: { ids: HostArray; table: HostArray; y: HostArray },
  V: number,
  C: number,
): void {
  for (let n = 0; n < ids.length; n++) {
    if (ids[n] < 0 || ids[n] >= V) continue;
    for (let c = 0; c < C; c++) y[n * C + c] = table[ids[n] * C + c];
  }
}

export const embedding = defineOp({
  name: "embedding",
  doc: "y[n] = table[ids[n]]; an id outside 0..V-1 gives a row of zeros",
  sig: "ids:i32[N..] table[V,C] -> y[N..,C]",
  reference: (io, { V, C }) => referenceGather(io, V, C),
  kernel: (k, io, { N, V, C }) => runGather(k, io, { N, V, C }),
  draw: (pick) => {
    const V = pick.int(1, 90);
    return {
      dims: { N: pick.shape(60, 2), V, C: pick.int(1, 150) },
      values: { ids: (size) => pick.ints(size, 0, V - 1) },
    };
  },
  close: { rel: 0 }, // a copy
  flops: () => 0,
});

export const selectRows = defineOp({
  name: "selectRows",
  doc: "y[m] = x[rows[m]], zeros for a row of -1; back[n] is the m that takes row n, or -1, and serves the gradient",
  sig: "x[N,C] rows:i32[M] back:i32[N] -> y[M,C]",
  reference: ({ x, rows, y }, { N, C }) => referenceGather({ ids: rows, table: x, y }, N, C),
  kernel: (k, { x, rows, y }, { M, N, C }) => runGather(k, { ids: rows, table: x, y }, { N: M, V: N, C }),
  draw: (pick) => {
    const N = pick.int(1, 60);
    const [rows, back] = drawSelection(pick, N);
    return {
      dims: { N, M: rows.length, C: pick.int(1, 150) },
      values: { rows: () => rows, back: () => back },
    };
  },
  close: { rel: 0 }, // a copy
  flops: () => 0,
});

/** Draws some rows of N in any order, each at most once, mixed with -1, and the inverse of that mapping. */
function drawSelection(pick: TestRandom, N: number): [rows: Int32Array, back: Int32Array] {
  const back = new Int32Array(N).fill(-1);
  const rows: number[] = [];
  for (let n = 0; n < N; n++) {
    if (pick.chance(0.2)) rows.push(-1);
    if (!pick.chance(0.6)) continue;
    back[n] = rows.length;
    rows.push(n);
  }
  return [Int32Array.from(rows), back];
}

export const embeddingBackward = defineOp({
  name: "embeddingBackward",
  doc: "dtable[v] = Σ dy[n] over n with ids[n] = v, in order of n, so that results are the same on every run",
  sig: "dy[N..,C] ids:i32[N..] -> dtable:f32[V,C]",
  attrs: { rows: 0 },
  infer: ([dy], { rows }) => ({ outputs: [{ shape: [rows, dy.shape[dy.shape.length - 1]], dtype: "f32" }] }),
  reference({ dy, ids, dtable }, { N, C }, { rows }) {
    for (let n = 0; n < N; n++) {
      if (ids[n] < 0 || ids[n] >= rows) continue;
      for (let c = 0; c < C; c++) dtable[ids[n] * C + c] += dy[n * C + c];
    }
  },
  kernel(k, { dy, ids, dtable }, { N, C }, { rows }) {
    for (const range of k.split(rows, [dtable])) {
      for (const tokens of N === 0 ? [NO_ROWS] : k.split(N, [dy])) {
        k.run("embedding/backward", {
          bind: {
            ids: k.rows(ids, N, tokens),
            dy: k.rows(dy, N, tokens),
            dtable: k.rows(dtable, rows, range),
          },
          params: {
            n: tokens.count,
            firstToken: tokens.start,
            c: C,
            first: range.start,
            count: range.count,
            v: rows,
            isFirst: tokens.start === 0,
          },
          grid: range.count,
        });
      }
    }
  },
  draw: (pick) => {
    const rows = pick.int(1, 60);
    return {
      dims: { N: pick.shape(60, 2), C: pick.int(1, 150) },
      attrs: { rows },
      values: { ids: (size) => pick.ints(size, 0, rows - 1) },
    };
  },
  // A sum has at most N terms near 1 of both signs, which may cancel, and one rounding per term.
  close: ({ N }) => ({ rel: N * EPS, abs: N * EPS }),
  flops: ({ N, C }) => N * C,
});
