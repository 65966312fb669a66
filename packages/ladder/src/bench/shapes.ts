/** What the benchmarks run: every op of the op table, at the shapes of real models. */
import { type DType, NF4_BLOCKS, type OpName, rowOf } from "@sidenet/tensor";

/** Extents of a model that benchmarks are named after: letters of methods.md. */
export interface BenchModel {
  readonly name: string;
  readonly d: number;
  readonly f: number;
  readonly V: number;
  readonly heads: number;
  readonly keyHeads: number;
  readonly c: number;
}

/** Models whose extents the suite takes, by the names of `--models`. */
export const BENCH_MODELS: Readonly<Record<string, BenchModel>> = {
  "smollm2-135m": { name: "SmolLM2-135M", d: 576, f: 1536, V: 49152, heads: 9, keyHeads: 3, c: 64 },
  "qwen2.5-0.5b": { name: "Qwen2.5-0.5B", d: 896, f: 4864, V: 151936, heads: 14, keyHeads: 2, c: 64 },
  "qwen2.5-7b": { name: "Qwen2.5-7B", d: 3584, f: 18944, V: 152064, heads: 28, keyHeads: 4, c: 128 },
};

/** How the values of an operand are generated; default: normal random numbers. */
export type Fill =
  | { readonly kind: "normal" }
  | { readonly kind: "ids"; readonly below: number }
  | { readonly kind: "bytes" }
  | { readonly kind: "value"; readonly value: number }
  | { readonly kind: "nf4-table" }
  | { readonly kind: "state-maps" };

export interface Operand {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly fill: Fill;
  /** Elements that the op reads plus those that it writes, where that is not all of them once (twice if updated in place). */
  readonly moves?: number;
}

/** One row at one set of extents. */
export interface BenchCase {
  readonly op: OpName;
  /** "linear gate f16 2048 Qwen2.5-7B": unique, and stable between versions. */
  readonly name: string;
  readonly operands: Readonly<Record<string, Operand>>;
  readonly attrs: object;
  readonly residuals: readonly string[];
}

type Element = "f32" | "f16";
interface OperandSpec {
  readonly shape: readonly number[];
  readonly dtype?: DType;
  readonly fill?: Fill;
  readonly moves?: number;
}
/** An operand, or its shape alone. */
type Loose = readonly number[] | OperandSpec;

interface Variant {
  readonly label?: string;
  /** By name; optional operands that are missing are not given. */
  readonly operands: Readonly<Record<string, Loose>>;
  readonly attrs?: object;
  readonly residuals?: readonly string[];
}

const ids = (shape: number[], below: number): OperandSpec => ({
  shape,
  dtype: "i32",
  fill: { kind: "ids", below },
});
/** Activations: f32, whatever the type of the weights. */
const plain = (...shape: number[]): OperandSpec => ({ shape, dtype: "f32" });
const value = (shape: number[], number: number): OperandSpec => ({
  shape,
  fill: { kind: "value", value: number },
});
/** An operand of which the op moves only so many elements: it reads some, or overwrites without reading. */
const partly = (moves: number, ...shape: number[]): OperandSpec => ({ shape, moves });

/** The four tensors of a weight [out, in] in NF4 with double quantization, of which `read` rows are read. */
function nf4(out: number, inner: number, read = out): Record<string, OperandSpec> {
  const blocksOf = (rows: number) => Math.ceil((rows * inner) / NF4_BLOCKS.block);
  const nestedOf = (rows: number) => Math.ceil(blocksOf(rows) / NF4_BLOCKS.nestedBlock);
  return {
    codes: { shape: [(out * inner) / 2], fill: { kind: "bytes" }, moves: (read * inner) / 2 },
    table: { shape: [273], fill: { kind: "nf4-table" } },
    absmax: { ...value([nestedOf(out)], 0.01), moves: nestedOf(read) },
    scales: { shape: [blocksOf(out)], fill: { kind: "bytes" }, moves: blocksOf(read) },
  };
}

const half = (tokens: number): number => Math.ceil(tokens / 2);

type Rule = (m: BenchModel, T: number) => readonly Variant[];

/** The same op for three of a block's linear layers, of weights [O, I]. */
const projections =
  (make: (T: number, I: number, O: number) => Variant): Rule =>
  ({ d, f, heads, c }, T) => [
    { label: "q", ...make(T, d, heads * c) },
    { label: "gate", ...make(T, d, f) },
    { label: "down", ...make(T, f, d) },
  ];

/** Ops whose extents follow from the model. All others take [T, d] for every operand. */
const RULES: Partial<Record<OpName, Rule>> = {
  linear: projections((T, I, O) => ({ operands: { x: plain(T, I), w: [O, I] } })),
  matmulNT: projections((T, I, O) => ({ operands: { a: plain(T, I), b: [O, I] } })),
  matmul: projections((T, I, O) => ({ operands: { a: plain(T, O), b: [O, I] } })),
  matmulTN: projections((T, I, O) => ({ operands: { a: [T, O], b: [T, I] } })),
  nf4Linear: projections((T, I, O) => ({ operands: { x: plain(T, I), ...nf4(O, I) }, attrs: { out: O } })),
  nf4LinearBackwardX: projections((T, I, O) => ({
    operands: { dy: plain(T, O), ...nf4(O, I) },
    attrs: { in: I },
  })),
  nf4Dequantize: ({ d, f }) => [{ operands: nf4(f, d), attrs: { shape: [f, d] } }],
  nf4Quantize: ({ d, f }) => [
    { operands: { w: [f, d], table: { shape: [16], fill: { kind: "nf4-table" } } } },
  ],
  nf4QuantizePart: ({ d, f }) => [
    {
      operands: {
        codes: { ...partly((f * d) / 2, (f * d) / 2), fill: { kind: "bytes" } },
        absmax: partly((f * d) / NF4_BLOCKS.block, (f * d) / NF4_BLOCKS.block),
        w: [f, d],
        table: { shape: [16], fill: { kind: "nf4-table" } },
      },
    },
  ],
  nf4QuantizeScales: ({ d, f }) => [
    {
      operands: {
        absmax: [(f * d) / NF4_BLOCKS.block],
        table: { shape: [273], fill: { kind: "nf4-table" } },
      },
    },
  ],
  attention: ({ heads, keyHeads, c }, T) => [
    {
      operands: { q: [1, T, heads, c], k: [1, T, keyHeads, c], v: [1, T, keyHeads, c] },
      residuals: ["lse"],
    },
  ],
  attentionBackwardQ: attentionBackward,
  attentionBackwardKV: attentionBackward,
  rope: ({ heads, c }, T) => [{ operands: { x: [1, T, heads, c], cos: [T, c / 2], sin: [T, c / 2] } }],
  siluMul: ({ f }, T) => [{ operands: { gate: [T, f], up: [T, f] } }],
  siluMulBackward: ({ f }, T) => [{ operands: { dy: [T, f], gate: [T, f], up: [T, f] } }],
  rmsNorm: ({ d }, T) => [{ operands: { x: [T, d], gain: [d] } }],
  rmsNormBackwardX: ({ d }, T) => [{ operands: { dy: [T, d], x: [T, d], rstd: value([T], 1), gain: [d] } }],
  rmsNormBackwardGain: ({ d }, T) => [{ operands: { dy: [T, d], x: [T, d], rstd: value([T], 1) } }],
  layerNorm: ({ d }, T) => [{ operands: { x: [T, d], gain: [d], bias: [d] } }],
  layerNormBackwardX: ({ d }, T) => [
    { operands: { dy: [T, d], x: [T, d], mean: value([T], 0), rstd: value([T], 1), gain: [d] } },
  ],
  layerNormBackwardGain: ({ d }, T) => [
    { operands: { dy: [T, d], x: [T, d], mean: value([T], 0), rstd: value([T], 1) } },
  ],
  softmax: ({ heads }, T) => [{ operands: { x: [heads * T, T] } }],
  softmaxBackward: ({ heads }, T) => [{ operands: { dy: [heads * T, T], y: [heads * T, T] } }],
  crossEntropy: ({ V }, T) => [
    { operands: { logits: [T, V], targets: ids([T], V) }, residuals: ["max", "logSum"] },
  ],
  crossEntropyBackward: ({ V }, T) => [
    {
      operands: {
        dloss: value([], 1),
        logits: [T, V],
        targets: ids([T], V),
        max: value([T], 4),
        logSum: value([T], 8),
      },
    },
  ],
  lmHeadLoss: ({ d, V }, T) => [
    { label: "forward", operands: { h: plain(T, d), w: [V, d], targets: ids([T], V) } },
    { label: "with dh", operands: { h: plain(T, d), w: [V, d], targets: ids([T], V) }, residuals: ["dh"] },
  ],
  lmHeadLossBackwardW: ({ d, V }, T) => [
    { operands: { dloss: value([], 1), h: plain(T, d), w: [V, d], targets: ids([T], V) } },
  ],
  embedding: ({ d, V }, T) => [{ operands: { ids: ids([T], V), table: partly(T * d, V, d) } }],
  selectRows: ({ d }, T) => [
    {
      operands: {
        x: partly(half(T) * d, T, d),
        rows: ids([half(T)], T),
        back: { ...ids([T], half(T)), moves: 0 },
      },
    },
  ],
  nf4Embedding: ({ d, V }, T) => [
    { operands: { ids: ids([T], V), ...nf4(V, d, T) }, attrs: { rows: V, width: d } },
  ],
  nf4HeadLoss: ({ d, V }, T) =>
    [["forward"], ["with dh", "dh"]].map(([label, ...residuals]) => ({
      label,
      residuals,
      operands: { h: plain(T, d), ...nf4(V, d), targets: ids([T], V) },
      attrs: { vocab: V },
    })),
  embeddingBackward: ({ d, V }, T) => [{ operands: { dy: [T, d], ids: ids([T], V) }, attrs: { rows: V } }],
  adamw: ({ d, f }) => [{ operands: { p: [f, d], m: value([f, d], 0.1), v: value([f, d], 0.1), g: [f, d] } }],
  adamw8: ({ d, f }) => {
    const codes: Loose = { shape: [f * d], fill: { kind: "bytes" } };
    const absmax = value([Math.ceil((f * d) / 256)], 0.01);
    const maps: Loose = { shape: [512], fill: { kind: "state-maps" } };
    const state = { mCodes: codes, vCodes: codes, mMax: absmax, vMax: absmax, maps };
    return [{ operands: { p: [f * d], ...state, g: [f * d] } }];
  },
  sgd: ({ d, f }) => [{ operands: { p: [f, d], m: [f, d], g: [f, d] } }],
  sampleLogits: ({ V }) => [{ operands: { logits: [1, V] }, attrs: { topP: 0.9 } }],
  argmax: ({ V }) => [{ operands: { x: [1, V] } }],
  topK: ({ V }) => [{ operands: { x: [1, V] }, attrs: { count: 8 } }],
  where: ({ d }, T) => [
    { operands: { mask: { shape: [T, d], fill: { kind: "ids", below: 2 } }, a: [T, d], b: [T, d] } },
  ],
  log: ({ d }, T) => [{ operands: { x: value([T, d], 2) } }],
  sqrt: ({ d }, T) => [{ operands: { x: value([T, d], 2) } }],
  div: ({ d }, T) => [{ operands: { a: [T, d], b: value([T, d], 2) } }],
  transpose: ({ d }, T) => [{ operands: { x: [T, d] }, attrs: { permutation: [1, 0] } }],
  broadcast: ({ d }, T) => [{ operands: { x: [d] }, attrs: { shape: [T, d], axis: 0 } }],
  concat: ({ d }, T) => [{ operands: { a: [T, d], b: [T, d] } }],
  slice: ({ d }, T) => [
    { operands: { x: partly(half(T) * d, T, d) }, attrs: { start: T >> 2, count: half(T) } },
  ],
  sliceBackward: ({ d }, T) => [{ operands: { dy: [half(T), d] }, attrs: { start: T >> 2, length: T } }],
  cacheWrite: ({ keyHeads, c }, T) => [
    {
      operands: { cache: partly(T * keyHeads * c, 1, 2 * T, keyHeads, c), x: [1, T, keyHeads, c] },
      attrs: { offset: T },
    },
  ],
  fill: overwritten,
  normal: overwritten,
  uniform: overwritten,
  gatherAlong: ({ d }, T) => [{ operands: { x: partly(T * 64, T, d), ids: ids([T, 64], d) } }],
  gatherAlongBackward: ({ d }, T) => [
    { operands: { dy: [T, 64], ids: ids([T, 64], d) }, attrs: { length: d } },
  ],
  cast: ({ d }, T) => [{ operands: { x: [T, d] }, attrs: { to: "f32" } }],
  dropout: ({ d }, T) => [{ operands: { x: [T, d] }, attrs: { rate: 0.1 } }],
  clamp: ({ d }, T) => [{ operands: { x: [T, d] }, attrs: { min: -1, max: 1 } }],
  quantize8: ({ d }, T) => [{ operands: { x: [T, d] } }],
  dequantize8: ({ d }, T) => [
    {
      operands: {
        codes: { shape: [T, d], fill: { kind: "bytes" } },
        scales: value([Math.ceil((T * d) / 64)], 0.01),
      },
    },
  ],
  scaleBy: ({ d }, T) => [{ operands: { x: [T, d], s: value([], 0.5) } }],
  sumSquares: ({ d, f }) => [{ operands: { totals: value([256], 0), x: [f, d] } }],
  clipFactor: () => [{ operands: { sumSquares: value([256], 4) } }],
};

function overwritten({ d }: BenchModel, T: number): Variant[] {
  return [{ operands: { x: partly(T * d, T, d) } }];
}

function attentionBackward({ heads, keyHeads, c }: BenchModel, T: number): Variant[] {
  const query = [1, T, heads, c];
  const key = [1, T, keyHeads, c];
  const lse = value([1, T, heads, 2], 4);
  return [{ operands: { dy: query, q: query, k: key, v: key, y: query, lse } }];
}

/** The cases of an op at the extents of a model, in one storage type; none for views and ops without f16. */
export function benchCases(op: OpName, model: BenchModel, tokens: number, elem: Element): BenchCase[] {
  const row = rowOf(op);
  const { inputs } = row.signature;
  if (row.view) return [];
  if (elem === "f16" && !inputs.some(({ dtype, accepts }) => dtype === null && accepts.includes("f16"))) {
    return [];
  }
  const all = Object.fromEntries(inputs.map(({ name }) => [name, [tokens, model.d]]));
  const variants = RULES[op]?.(model, tokens) ?? [{ operands: all }];
  return variants.map(({ label, operands, attrs = {}, residuals = [] }) => ({
    op,
    name: [op, label, elem, tokens, model.name].filter((part) => part !== undefined).join(" "),
    operands: Object.fromEntries(
      inputs
        .filter(({ name }) => operands[name] !== undefined)
        .map(({ name, dtype, accepts }) => {
          const given = operands[name];
          const { fill = { kind: "normal" }, ...spec }: OperandSpec =
            "shape" in given ? given : { shape: given };
          const type = dtype ?? spec.dtype ?? (accepts.includes(elem) ? elem : "f32");
          return [name, { ...spec, dtype: type, fill }];
        }),
    ),
    attrs,
    residuals,
  }));
}
