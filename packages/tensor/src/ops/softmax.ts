import { EPS } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp } from "../op.ts";
import { formatShape, type Shape } from "../shape.ts";
import { drawRows, rowGroups } from "./row-groups.ts";

const endsWith = (shape: Shape, end: Shape): boolean =>
  end.length <= shape.length && end.every((extent, i) => extent === shape[shape.length - end.length + i]);

export const softmax = defineOp({
  name: "softmax",
  doc:
    "y = e^x / Σ e^x over the last axis; where mask is 0 an element is hidden: y = 0, and so is a row with nothing visible. " +
    "A mask has the last axes of x, and repeats over those before. An element far below its row's maximum, such as -∞, gives at most " +
    "1.3e-38, which need not be 0",
  sig: "x[N..,C] mask?:u8[M..,C] -> y[N..,C]",
  infer: ([x, mask]) => {
    if (mask && !endsWith(x.shape, mask.shape)) {
      throw new SidenetError(
        "T-SHAPE",
        `softmax: the mask is ${formatShape(mask.shape)}, wanted the last axes of x, ${formatShape(x.shape)}.`,
      );
    }
    return { outputs: [{ shape: x.shape, dtype: x.dtype }] };
  },
  reference({ x, mask, y }, { N, C }) {
    const visible = (i: number) => mask === null || mask[i % mask.length] !== 0;
    for (let at = 0; at < N * C; at += C) {
      let max = Number.NEGATIVE_INFINITY;
      for (let c = 0; c < C; c++) if (visible(at + c)) max = Math.max(max, x[at + c]);
      let sum = 0;
      for (let c = 0; c < C; c++) if (visible(at + c)) sum += Math.exp(x[at + c] - max);
      for (let c = 0; c < C; c++) if (visible(at + c)) y[at + c] = Math.exp(x[at + c] - max) / sum;
    }
  },
  kernel(k, { x, mask, y }, { N, C, M }) {
    for (const range of k.split(N, [x, y])) {
      const { consts, vectors, each, grid } = rowGroups(k.profile, { rows: range.count, columns: C });
      const bind = { x: k.rows(x, N, range), y: k.rows(y, N, range) };
      k.run("softmax/forward", {
        bind: mask ? { ...bind, mask } : bind,
        params: { n: range.count, vectors, each, maskRows: mask ? M : 0, firstRow: range.start },
        grid,
        consts: { ...consts, MASKED: mask ? 1 : 0 },
      });
    }
  },
  draw: (pick) => {
    const { N, C } = drawRows(pick, 1, 40, 3);
    return {
      dims: { N, M: N.slice(pick.int(0, N.length)), C },
      omit: pick.chance(0.4) ? ["mask"] : [],
    };
  },
  close: { rel: 32 * EPS }, // a sum of one sign; e^x and its argument are a few ulp off
  flops: ({ N, C }) => 4 * N * C,
});

export const softmaxBackward = defineOp({
  name: "softmaxBackward",
  doc: "dx = y · (dy - Σ dy · y) over the last axis; 0 where y is 0, so it needs no mask",
  sig: "dy[N..,C] y[N..,C] -> dx[N..,C]",
  reference({ dy, y, dx }, { N, C }) {
    for (let at = 0; at < N * C; at += C) {
      let dot = 0;
      for (let c = 0; c < C; c++) dot += dy[at + c] * y[at + c];
      for (let c = 0; c < C; c++) dx[at + c] = y[at + c] * (dy[at + c] - dot);
    }
  },
  kernel(k, { dy, y, dx }, { N, C }) {
    for (const range of k.split(N, [dy, y, dx])) {
      const bind = { yIn: k.rows(y, N, range), dy: k.rows(dy, N, range), y: k.rows(dx, N, range) };
      const { consts, vectors, each, grid } = rowGroups(k.profile, {
        rows: range.count,
        columns: C,
        operands: 2,
      });
      k.run("softmax/backward", {
        bind,
        params: { n: range.count, vectors, each, maskRows: 0, firstRow: 0 },
        grid,
        consts: { ...consts, MASKED: 0 },
      });
    }
  },
  draw: (pick) => {
    const dims = drawRows(pick, 1, 40, 3);
    // Like outputs of softmax: rows that sum to about 1.
    const y = (size: number) => Float64Array.from({ length: size }, () => (2 * pick.unit()) / dims.C);
    return { dims: { ...dims }, values: { y } };
  },
  // dy - Σ may cancel down to 0 from dy, up to 4 here, times y, up to 2 / C; the rounding of the sum grows as √C.
  close: ({ C }) => ({ rel: 32 * EPS, abs: (8 * EPS) / Math.max(C, 1) + 1e-8 }),
  flops: ({ N, C }) => 4 * N * C,
});
