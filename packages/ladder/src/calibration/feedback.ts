/** GPTQ: rounds the columns of a weight one after the other; later columns compensate for the errors of earlier ones. */
import { NF4_BLOCKS } from "@sidenet/tensor";
import { type BlockScales, levelCode, levelValue } from "./nf4-grid.ts";
import { subtractTile } from "./subtract-tile.ts";
import { upperFactor } from "./upper-factor.ts";

const { block: BLOCK } = NF4_BLOCKS;

/** Number of columns that receive the feedback of all earlier panels at once: one block, where blocks lie within rows. */
const PANEL = BLOCK;
/** Number of rows that are rounded together. */
const ROWS = 128;

/** The factor R of H = R · Rᵀ, with the columns of a weight [out, in] reordered, in the form that rounding needs. */
export interface Feedback {
  /** [in] */
  readonly columns: number;
  /** The column at each position of the order. */
  readonly order: Int32Array;
  /** Number of columns, padded to a multiple of 4. */
  readonly stride: number;
  /** [stride, stride], by positions: row j holds R[k, j] / R[j, j] for the columns k before j. */
  readonly shares: Float64Array;
  /** R[j, j]² */
  readonly weights: Float64Array;
}

/**
 * Columns in descending order of their inputs' size, since later columns compensate for earlier ones. Where blocks lie within
 * rows, blocks are sorted as a whole, and columns within each block.
 */
function orderOf(sizes: Float64Array): Int32Array {
  const n = sizes.length;
  const width = n % BLOCK === 0 ? BLOCK : n;
  const groups = Array.from({ length: n / width }, (_, g) => {
    const columns = Array.from({ length: width }, (__, j) => g * width + j);
    columns.sort((a, b) => sizes[b] - sizes[a] || a - b);
    return { columns, size: columns.reduce((sum, column) => sum + sizes[column], 0) };
  });
  groups.sort((a, b) => b.size - a.size || a.columns[0] - b.columns[0]);
  return Int32Array.from(groups.flatMap(({ columns }) => columns));
}

/**
 * The feedback for a symmetric H [n, n], after `damping` · the mean of its diagonal was added to the diagonal. Null where H is
 * not finite or not positive definite.
 */
export function feedbackOf(h: Float32Array | Float64Array, n: number, damping: number): Feedback | null {
  const stride = Math.ceil(n / 4) * 4;
  const sizes = Float64Array.from({ length: n }, (_, i) => h[i * n + i]);
  const trace = sizes.reduce((a, b) => a + b, 0);
  if (!Number.isFinite(trace)) return null;
  const extra = trace > 0 ? (damping * trace) / n : 1; // all inputs are 0: all columns count alike
  const order = orderOf(sizes);
  const r = new Float64Array(stride * stride);
  for (let i = 0; i < stride; i++) {
    for (let j = i; j < n; j++) r[i * stride + j] = h[order[i] * n + order[j]];
    r[i * stride + i] = i < n ? sizes[order[i]] + extra : 1;
  }
  if (upperFactor(r, stride) !== null) return null;
  const weights = Float64Array.from({ length: n }, (_, j) => r[j * stride + j] ** 2);
  for (let j = 0; j < n; j++) {
    for (let k = 0; k < j; k++) r[j * stride + k] = r[k * stride + j] / r[j * stride + j];
  }
  return { columns: n, order, stride, shares: r, weights };
}

/** A weight's codes, and Σ (x · (q - w)ᵀ)² over the inputs x of H, damping included. */
interface Rounded {
  readonly codes: Uint8Array;
  readonly error: number;
}

/** Scales, codes and errors of one panel of a row, for one candidate scale. */
interface Trial {
  readonly scales: Float64Array;
  readonly codes: Uint8Array;
  readonly errors: Float64Array;
}

const newTrial = (): Trial => ({
  scales: new Float64Array(PANEL),
  codes: new Uint8Array(PANEL),
  errors: new Float64Array(PANEL),
});

/** Candidate scales of a block, as shares of its largest magnitude; the one that is most often best comes first. */
const SHARES = [0.9, 1, 0.85, 0.95, 0.8];

/** Rounds up to `ROWS` rows of a weight w [out, in]. */
class Strip {
  readonly #w: Float32Array;
  readonly #scales: BlockScales;
  readonly #feedback: Feedback;
  /** The weight's values by positions, [rows, stride]. */
  readonly #values: Float64Array;
  /** The values to round: the weight's, less the feedback of the errors before them, [rows, stride]. */
  readonly #targets: Float64Array;
  /** Rounded values minus the weight's values, [rows, stride]. */
  readonly #errors: Float64Array;
  #trial = newTrial();
  #best = newTrial();
  #first = 0;
  #rows = 0;

  constructor(w: Float32Array, scales: BlockScales, feedback: Feedback) {
    this.#w = w;
    this.#scales = scales;
    this.#feedback = feedback;
    this.#values = new Float64Array(ROWS * feedback.stride);
    this.#targets = new Float64Array(ROWS * feedback.stride);
    this.#errors = new Float64Array(ROWS * feedback.stride);
  }

  /** Rounds these rows into `codes`; returns the squared error. */
  round(first: number, rows: number, codes: Uint8Array): number {
    const { columns, stride, order } = this.#feedback;
    [this.#first, this.#rows] = [first, rows];
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++)
        this.#values[i * stride + j] = this.#w[(first + i) * columns + order[j]];
    }
    this.#targets.set(this.#values);
    let cost = 0;
    for (let start = 0; start < columns; start += PANEL) {
      const end = Math.min(start + PANEL, columns);
      this.#applyFeedback(start, end);
      for (let row = 0; row < rows; row++) {
        cost += this.#roundPanel(row, start, end);
        for (let j = start; j < end; j++)
          codes[(first + row) * columns + order[j]] = this.#best.codes[j - start];
        this.#errors.set(this.#best.errors.subarray(0, end - start), row * stride + start);
      }
    }
    return cost;
  }

  /** Subtracts the feedback of all columns before `start` from the targets of [start, end). */
  #applyFeedback(start: number, end: number): void {
    const { stride, shares: data } = this.#feedback;
    const [targets, errors] = [this.#targets, this.#errors].map((rows) => ({ data: rows, stride }));
    for (let j = start; j < end; j += 4) {
      for (let i = 0; i < this.#rows; i += 2)
        subtractTile(targets, i * stride + j, errors, i * stride, { data, stride }, j * stride, start);
    }
  }

  /** Finds the best scale and codes for the columns [start, end) of a row, as `#best`; returns the squared error. */
  #roundPanel(row: number, start: number, end: number): number {
    const scales = this.#scales;
    const { columns, order } = this.#feedback;
    const blockAt = (place: number) => Math.floor(((this.#first + row) * columns + order[place]) / BLOCK);
    if (columns % BLOCK !== 0) {
      // Blocks cross rows, so their scales are fixed.
      for (let j = start; j < end; j++) this.#best.scales[j - start] = scales.values[blockAt(j)];
      return this.#try(row, start, end, this.#best, Number.POSITIVE_INFINITY);
    }
    const block = blockAt(start);
    let least = Number.POSITIVE_INFINITY;
    let chosen = scales.scales[block];
    for (const share of SHARES) {
      const code = scales.codeOf(block, share * scales.largest[block]);
      this.#trial.scales.fill(scales.valueOf(block, code));
      const cost = this.#try(row, start, end, this.#trial, least);
      if (!(cost < least)) continue;
      [least, chosen] = [cost, code];
      [this.#trial, this.#best] = [this.#best, this.#trial];
    }
    scales.choose(block, chosen);
    return least;
  }

  /** Rounds a panel with a trial's scales. Returns the squared error, or stops at any value above `limit`. */
  #try(row: number, start: number, end: number, { scales, codes, errors }: Trial, limit: number): number {
    const { stride, shares, weights } = this.#feedback;
    const at = row * stride + start;
    const targets = this.#targets;
    const own = this.#values;
    let cost = 0;
    for (let j = 0; j < end - start && cost <= limit; j++) {
      let target = targets[at + j];
      const share = (start + j) * stride + start;
      for (let k = 0; k < j; k++) target -= errors[k] * shares[share + k];
      codes[j] = levelCode(target, scales[j]);
      const value = levelValue(codes[j], scales[j]);
      errors[j] = value - own[at + j];
      cost += weights[start + j] * (value - target) ** 2;
    }
    return cost;
  }
}

/**
 * Rounds a weight w [out, in] to NF4, column after column, each to the level nearest to its value less the feedback of earlier
 * errors. A block that lies within a row gets the candidate scale with the least error, which is stored in `scales`.
 */
export function roundWithFeedback(w: Float32Array, scales: BlockScales, feedback: Feedback): Rounded {
  const codes = new Uint8Array(w.length);
  const strip = new Strip(w, scales, feedback);
  const total = w.length / feedback.columns;
  let error = 0;
  for (let first = 0; first < total; first += ROWS)
    error += strip.round(first, Math.min(ROWS, total - first), codes);
  return { codes, error };
}
