/**
 * Random numbers from Philox, which depend only on seed, stream and position: they are the same on every device, and the backward pass
 * of dropout recomputes its mask. Position i of stream s is word i of `new Random(seed, s)`.
 */
import { EPS, type HostArray } from "../dtype.ts";
import { defineOp, type KernelContext, type KernelEntry, NOT_NEGATIVE, WORD } from "../op.ts";
import { isWord, philox } from "../random.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";

const LANES = 64;
const WORDS = 4; // of a Philox block

export interface Source {
  readonly seed: number;
  readonly stream: number;
  /** Position of the first element in the stream: a multiple of 4. */
  readonly offset: number;
}

const SOURCE: Source = { seed: 0, stream: 0, offset: 0 };

const SOURCE_RANGES = { seed: WORD, stream: WORD };

const sourceProblem = ({ offset }: Source): string | null =>
  isWord(offset / WORDS) && offset / WORDS < 2 ** 31
    ? null
    : `offset ${offset} is not a multiple of 4 below 2^33`;

/** Uniform numbers in (0, 1): the upper 23 bits of each word plus 1/2, exact in f32. */
function uniformsOf(count: number, { seed, stream, offset }: Source): Float64Array {
  const values = new Float64Array(count);
  for (let i = 0; i < count; i += WORDS) {
    const words = philox([(offset + i) / WORDS, 0, stream, 0], [seed, 0]);
    for (let j = 0; j < Math.min(WORDS, count - i); j++) values[i + j] = ((words[j] >>> 9) + 0.5) / 2 ** 23;
  }
  return values;
}

function runRandom(
  k: KernelContext,
  entry: KernelEntry,
  bind: Record<string, Tensor>,
  scale: number,
  { seed, stream, offset }: Source,
): void {
  const tensors = Object.values(bind);
  const { size } = tensors[0];
  for (const range of k.split(size, tensors)) {
    const windows = Object.fromEntries(
      Object.entries(bind).map(([name, tensor]) => [name, k.rows(tensor, size, range)]),
    );
    const vectors = Math.ceil(range.count / WORDS);
    k.run(entry, {
      bind: windows,
      params: { vectors, firstBlock: (offset + range.start) / WORDS, seed, stream, scale },
      grid: Math.ceil(vectors / LANES),
    });
  }
}

const drawSource = (pick: TestRandom): Source => ({
  seed: Math.floor(pick.unit() * 2 ** 32),
  stream: Math.floor(pick.unit() * 2 ** 32),
  offset: WORDS * pick.oneOf([0, 1, Math.floor(pick.unit() * 2 ** 31)]),
});

export const uniform = defineOp({
  name: "uniform",
  doc: "x = uniform numbers in (0, 1), never 0 or 1, in place; the same bits on every device",
  sig: "x!:f32[N..] ->",
  attrs: { ...SOURCE },
  ranges: SOURCE_RANGES,
  check: (_, attrs) => sourceProblem(attrs),
  reference({ x }, { N }, attrs) {
    x.set(uniformsOf(N, attrs));
  },
  kernel: (k, { x }, _, attrs) => runRandom(k, "random/uniform_numbers", { y: x }, 1, attrs),
  draw: (pick) => ({ dims: { N: pick.shape(3000) }, attrs: drawSource(pick) }),
  close: { rel: 0 },
  flops: () => 0,
});

/** Normal numbers by the Box-Muller transform, a pair from words 2k and 2k + 1. */
function normalsOf(values: HostArray, deviation: number, source: Source): void {
  const u = uniformsOf(Math.ceil(values.length / 2) * 2, source);
  for (let i = 0; i < values.length; i++) {
    const pair = i - (i % 2);
    const radius = deviation * Math.sqrt(-2 * Math.log(u[pair]));
    const angle = 2 * Math.PI * u[pair + 1];
    values[i] = radius * (i % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
  }
}

export const normal = defineOp({
  name: "normal",
  doc: "x = normal numbers of mean 0, in place, from the same random bits on every device; values may differ in the last bits",
  sig: "x!:f32[N..] ->",
  attrs: { ...SOURCE, deviation: 1 },
  ranges: { ...SOURCE_RANGES, deviation: NOT_NEGATIVE },
  check: (_, attrs) => sourceProblem(attrs),
  reference({ x }, _, { deviation, ...source }) {
    normalsOf(x, deviation, source);
  },
  kernel: (k, { x }, _, { deviation, ...source }) =>
    runRandom(k, "random/normal_numbers", { y: x }, deviation, source),
  draw: (pick) => ({
    dims: { N: pick.shape(3000) },
    attrs: { ...drawSource(pick), deviation: 10 ** pick.int(-3, 1) },
  }),
  // Logarithm, root, cosine and two products of a few roundings each, of values up to the largest.
  close: { rel: 16 * EPS },
  flops: ({ N }) => 20 * N,
});

export const dropout = defineOp({
  name: "dropout",
  doc: "y = 0 with probability rate, else x / (1 - rate); the mask is determined by seed, stream and offset and never stored",
  sig: "x[N..] -> y[N..]",
  attrs: { rate: 0, ...SOURCE },
  ranges: SOURCE_RANGES,
  check: (_, { rate, ...source }) =>
    rate >= 0 && rate < 1 ? sourceProblem(source) : `rate ${rate} is not in 0 <= rate < 1`,
  reference({ x, y }, { N }, { rate, ...source }) {
    const u = uniformsOf(N, source);
    const limit = Math.fround(rate); // as in the kernel, so that masks agree
    for (let i = 0; i < N; i++) y[i] = u[i] < limit ? 0 : x[i] / (1 - limit);
  },
  kernel: (k, { x, y }, _, { rate, ...source }) => runRandom(k, "random/dropout", { x, y }, rate, source),
  draw: (pick) => ({
    dims: { N: pick.shape(3000) },
    attrs: { ...drawSource(pick), rate: pick.oneOf([0, 0.1, 0.5, 0.9]) },
  }),
  close: { rel: 4 * EPS }, // a difference and a quotient
  flops: ({ N }) => N,
});
