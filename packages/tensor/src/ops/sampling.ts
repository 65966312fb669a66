/** Chooses the next token: the most likely, or a random one that is the same on every device for the same seed. */
import { defineOp, WORD } from "../op.ts";
import { isWord, philox } from "../random.ts";
import type { TestRandom } from "../test-random.ts";

interface Cuts {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
}

export interface SampleAttrs extends Cuts {
  readonly repetitionPenalty: number;
  readonly seed: number;
  readonly stream: number;
  /** Position of the first row's random number in the stream. */
  readonly offset: number;
}

const DEFAULTS: SampleAttrs = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  seed: 0,
  stream: 0,
  offset: 0,
};

/** Below it, quotients in the kernel would overflow f32. */
const MIN_TEMPERATURE = 1e-6;

function sampleProblem(N: number, attrs: SampleAttrs): string | null {
  const { temperature, topP, offset } = attrs;
  if (!(temperature === 0 || (temperature >= MIN_TEMPERATURE && temperature <= 1e6)))
    return `temperature ${temperature} is neither 0 nor from ${MIN_TEMPERATURE} to 1e6`;
  if (!(topP > 0 && topP <= 1)) return `topP ${topP} is not in 0 < topP <= 1`;
  return isWord(offset) && offset + N <= 2 ** 32
    ? null
    : `offset ${offset} is not a whole number with all ${N} rows below 2^32`;
}

/** The uniform number in (0, 1) of a row, with 23 bits. */
export function uniformAt(position: number, { seed, stream }: SampleAttrs): number {
  const words = philox([Math.floor(position / 4), 0, stream, 0], [seed, 0]);
  return ((words[position % 4] >>> 9) + 0.5) / 2 ** 23;
}

/** A row of logits with the repetition penalty applied once per recent id, rounded as on every device. */
function penalised(logits: ArrayLike<number>, recent: ArrayLike<number>, penalty: number): Float64Array {
  const z = Float64Array.from(logits);
  const [factor, inverse] = [Math.fround(penalty), Math.fround(1 / penalty)];
  for (let r = 0; r < recent.length; r++) {
    const v = recent[r];
    if (v >= 0 && v < z.length) z[v] = Math.fround(logits[v] * (logits[v] > 0 ? inverse : factor));
  }
  return z;
}

/** How far below the maximum minP allows a logit to be. */
const depthOf = ({ temperature, minP }: Cuts): number => Math.fround(-temperature * Math.log(minP));

/** The parameters of a draw that both kernels take. */
export const sampleParams = (attrs: SampleAttrs, V: number) => {
  const { temperature, topK, topP, minP, repetitionPenalty: penalty } = attrs;
  const depth = minP > 0 ? depthOf(attrs) : -1;
  const inverseTemperature = temperature > 0 ? 1 / temperature : 0;
  const cuts = { topK: topK >= V ? 0 : topK, topP, depth };
  return { v: V, ...cuts, inverseTemperature, penalty, inversePenalty: 1 / penalty };
};

interface Choice {
  readonly id: number;
  /** Distance of the choice from a different one, as a share of the total weight: f32 sums may decide differently if it is tiny. */
  readonly margin: number;
}

/**
 * The exact definition. With w[v] = e^((z[v] - max z) / temperature) the kept set is { v: z[v] >= threshold }, so equals are
 * kept or cut together. The threshold is the largest of
 * - topK: the K-th largest z (0: none),
 * - topP: the largest z' for which those of z >= z' have at least topP of the weight that topK leaves (1: none),
 * - minP: max z + temperature ln minP, where w is minP (0: none).
 * The choice is the first v for which the kept weight up to it is above u of the whole. At temperature 0: the first largest.
 */
function choose(z: Float64Array, u: number, cuts: Cuts): Choice {
  const { temperature, topK, topP, minP } = cuts;
  const falling = Float64Array.from(z).sort().reverse();
  const top = falling[0];
  if (temperature === 0) return { id: z.indexOf(top), margin: 1 };
  const weight = (value: number) => Math.exp((value - top) / temperature);
  let margin = 1;
  let threshold = falling[(topK > 0 ? Math.min(topK, z.length) : z.length) - 1];
  if (topP < 1) {
    const left = falling.filter((value) => value >= threshold);
    const total = left.reduce((sum, value) => sum + weight(value), 0);
    let mass = 0;
    for (let i = 0; i < left.length; i++) {
      mass += weight(left[i]);
      if (left[i] === left[i + 1]) continue; // equal values are kept or cut together, so there is no border between them
      margin = Math.min(margin, Math.abs(mass / total - topP));
      threshold = left[i];
      if (mass >= topP * total) break;
    }
  }
  if (minP > 0) threshold = Math.max(threshold, Math.fround(top - depthOf(cuts)));
  const total = falling.reduce((sum, value) => sum + (value >= threshold ? weight(value) : 0), 0);
  let id = -1;
  let mass = 0;
  for (let v = 0; v < z.length; v++) {
    if (z[v] < threshold) continue;
    mass += weight(z[v]);
    margin = Math.min(margin, Math.abs(mass / total - u));
    if (id < 0 && mass > u * total) id = v;
  }
  return { id: id < 0 ? z.lastIndexOf(threshold) : id, margin };
}

function* choices(
  { logits, recent }: { logits: ArrayLike<number>; recent: ArrayLike<number> | null },
  [N, V, R]: readonly [number, number, number],
  attrs: SampleAttrs,
): Generator<Choice> {
  for (let n = 0; n < N; n++) {
    const row = Array.prototype.slice.call(logits, n * V, (n + 1) * V);
    const ids = recent ? Array.prototype.slice.call(recent, n * R, (n + 1) * R) : [];
    yield choose(penalised(row, ids, attrs.repetitionPenalty), uniformAt(attrs.offset + n, attrs), attrs);
  }
}

const MAX_ROWS = 5; // of a random case

const drawAttrs = (pick: TestRandom): SampleAttrs => ({
  temperature: pick.oneOf([1, 0.7, 0, 0.1, 2, MIN_TEMPERATURE]),
  topK: pick.oneOf([0, 1, 2, 10, 1000]),
  topP: pick.oneOf([1, 0.9, 0.5, 0.01]),
  minP: pick.oneOf([0, 0.05, 0.5, 1]),
  repetitionPenalty: pick.oneOf([1, 1.3, 0.8, 10]),
  seed: Math.floor(pick.unit() * 2 ** 32),
  stream: Math.floor(pick.unit() * 2 ** 32),
  offset: pick.oneOf([0, 1, 2 ** 32 - MAX_ROWS, Math.floor(pick.unit() * 2 ** 31)]),
});

/** Some hundred times the error of f32 sums of so few weights. */
const CLEAR = 1e-4;

/** Draws a case whose choice is not at a border. Repeated tries always find one: borders are a few thousandths wide. */
function drawClear(pick: TestRandom) {
  const [N, V, R] = [pick.int(0, MAX_ROWS), pick.int(1, 700), pick.int(0, 40)];
  for (;;) {
    // Multiples of 1/64: exact in f16, and many of them equal.
    const logits = Float64Array.from(pick.ints(N * V, -320, 320), (i) => i / 64);
    const recent = pick.ints(N * R, -1, V);
    const attrs = drawAttrs(pick);
    const all = [...choices({ logits, recent }, [N, V, R], attrs)];
    if (all.some(({ margin }) => margin < CLEAR)) continue;
    return { dims: { N, V, R }, attrs, values: { logits: () => logits, recent: () => recent } };
  }
}

export const sampleLogits = defineOp({
  name: "sampleLogits",
  doc:
    "id = a token drawn with weights e^(logit / temperature), temperature 0 taking the largest; logits of recent ids are " +
    "divided by repetitionPenalty where positive, else multiplied; topK, topP and minP cut, in this order, and equals stay " +
    "together. The number of row n is word offset + n of (seed, stream), the same on every device",
  sig: "logits[N,V] recent?:i32[N,R] -> id:i32[N]",
  attrs: { ...DEFAULTS },
  ranges: {
    topK: WORD,
    minP: { least: 0, most: 1 },
    repetitionPenalty: { least: 1e-3, most: 1e3 },
    seed: WORD,
    stream: WORD,
  },
  check: ({ N, V }, attrs) =>
    V === 0 && N > 0 ? "there are no logits to choose from" : sampleProblem(N, attrs),
  reference({ logits, recent, id }, { N, V, R }, attrs) {
    let n = 0;
    for (const choice of choices({ logits, recent }, [N, V, R ?? 0], attrs)) id[n++] = choice.id;
  },
  kernel(k, { logits, recent, id }, { N, V, R }, attrs) {
    const { seed, stream, offset } = attrs;
    const ids = recent !== null && R > 0 ? recent : null;
    const z = k.temp([N, V]);
    for (const range of k.split(N, [logits, ids, z])) {
      k.run("sample/main", {
        bind: {
          logits: k.rows(logits, N, range),
          recent: ids && k.rows(ids, N, range),
          z: k.rows(z, N, range),
          id,
        },
        params: {
          n: range.count,
          r: ids ? R : 0,
          first: range.start,
          firstWord: offset + range.start,
          seed,
          stream,
          ...sampleParams(attrs, V),
        },
        grid: range.count,
      });
    }
  },
  draw: (pick) => {
    const drawn = drawClear(pick);
    return pick.chance(0.3) && drawn.attrs.repetitionPenalty === 1 ? { ...drawn, omit: ["recent"] } : drawn;
  },
  close: { rel: 0 }, // integers; cases at a border of the sums are not drawn
  flops: ({ N, V }) => 8 * N * V,
});
