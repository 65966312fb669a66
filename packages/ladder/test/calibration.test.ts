import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, NF4_BLOCKS, NF4_LEVELS, nf4Table, ParamStore, TestRandom } from "@sidenet/tensor";
import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { CalibratedLayers, MAX_COLUMNS } from "../src/calibration/calibrated-layers.ts";
import { calibratedNf4 } from "../src/calibration/calibrated-nf4.ts";
import { feedbackOf, roundWithFeedback } from "../src/calibration/feedback.ts";
import { addAttended, sinkWeights } from "../src/calibration/moments.ts";
import { BlockScales, blockMagnitudes, levelValue } from "../src/calibration/nf4-grid.ts";
import { upperFactor } from "../src/calibration/upper-factor.ts";
import { modelTensors } from "../src/methods/model-tensors.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import { Decoder } from "../src/model/decoder.ts";
import { loadWeights } from "../src/model/load-weights.ts";
import { denseMatrix, quantizeNf4, uploadNf4 } from "../src/model/nf4-weight.ts";
import { calibrationRows } from "../src/node/calibration-rows.ts";
import { openModel } from "../src/node/open-model.ts";
import { sidenet } from "./capture.ts";
import { errorOf } from "./code-of.ts";
import { convert, MODEL, putModel } from "./model-folder.ts";
import { writeTinyModel } from "./tiny-files.ts";
import { byteTokenizer } from "./tiny-tokenizer.ts";

const device = new CpuDevice();
const runs = { numRuns: 25 };

interface Case {
  readonly w: Float32Array;
  readonly rows: number;
  readonly columns: number;
  /** Inputs [count, columns]. */
  readonly x: Float64Array;
  readonly h: Float64Array;
}

/** Inputs whose columns go together, more or less, and some of which are much larger than others. */
function drawCase(seed: number, columns: number): Case {
  const pick = new TestRandom(seed);
  const rows = pick.int(1, 6);
  const count = pick.int(1, 2 * columns);
  const like = pick.unit();
  const x = Float64Array.from(pick.normals(count * columns));
  const sizes = Array.from(pick.normals(columns), (value) => Math.exp(value));
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < columns; j++) {
      const before = j === 0 ? 0 : x[i * columns + j - 1] / sizes[j - 1];
      x[i * columns + j] = sizes[j] * (like * before + (1 - like) * x[i * columns + j]);
    }
  }
  const h = new Float64Array(columns ** 2);
  for (let a = 0; a < columns; a++) {
    for (let b = 0; b < columns; b++) {
      for (let i = 0; i < count; i++) h[a * columns + b] += x[i * columns + a] * x[i * columns + b];
    }
  }
  return { w: Float32Array.from(pick.normals(rows * columns, 0.1)), rows, columns, x, h };
}

const columnCounts = fc.constantFrom(1, 3, 16, 30, 64, 65, 128);
const drawn = fc.record({ seed: fc.nat(), columns: columnCounts });

/** Σ (x · (q - w)ᵀ)² + damping · Σ (q - w)², from its definition. */
function outputError({ w, rows, columns, x }: Case, q: ArrayLike<number>, damping = 0): number {
  let sum = 0;
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < x.length / columns; i++) {
      let y = 0;
      for (let j = 0; j < columns; j++) y += x[i * columns + j] * (q[r * columns + j] - w[r * columns + j]);
      sum += y * y;
    }
    for (let j = 0; j < columns; j++) sum += damping * (q[r * columns + j] - w[r * columns + j]) ** 2;
  }
  return sum;
}

const extraOf = ({ h, columns }: Case, damping: number): number => {
  let trace = 0;
  for (let i = 0; i < columns; i++) trace += h[i * columns + i];
  return (damping * trace) / columns;
};

/** Values that codes with these scales stand for. */
const valuesOf = (codes: Uint8Array, { values }: BlockScales): Float64Array =>
  Float64Array.from(codes, (code, i) => levelValue(code, values[Math.floor(i / NF4_BLOCKS.block)]));

/** What `sidenet convert --dtype nf4` makes of a weight without calibration. */
async function roundedToNearest({ w, rows, columns }: Case): Promise<Float32Array> {
  using store = new ParamStore(device, "weights");
  quantizeNf4(store, "w", w);
  using dense = device.scope(() => denseMatrix(store, "w", [rows, columns]));
  return (await dense.read()) as Float32Array;
}

describe("the factor of a matrix of moments", () => {
  it("is upper triangular and gives the matrix back", () => {
    fc.assert(
      fc.property(fc.nat(), fc.constantFrom(4, 8, 60, 64, 68, 132, 196), (seed, n) => {
        const pick = new TestRandom(seed);
        const a = pick.normals(n * n);
        const h = new Float64Array(n * n);
        for (let i = 0; i < n; i++) {
          for (let j = 0; j < n; j++) {
            for (let k = 0; k < n; k++) h[i * n + j] += a[i * n + k] * a[j * n + k];
            if (i === j) h[i * n + j] += 0.1;
          }
        }
        const r = h.slice();
        expect(upperFactor(r, n)).toBe(null);
        for (let i = 0; i < n; i++) {
          for (let j = i; j < n; j++) {
            let sum = 0;
            for (let k = j; k < n; k++) sum += r[i * n + k] * r[j * n + k];
            expect(Math.abs(sum - h[i * n + j])).toBeLessThan(1e-10 * n);
          }
        }
      }),
      { numRuns: 10 },
    );
  });

  it("does not exist where the matrix is not positive definite, or not finite", () => {
    expect(upperFactor(Float64Array.of(1, 0, 0, 0, 0, 1, 2, 0, 0, 2, 1, 0, 0, 0, 0, 1), 4)).toBe(1);
    expect(feedbackOf(Float64Array.of(1, 0, 0, Number.NaN), 2, 0.01)).toBe(null);
    expect(feedbackOf(Float64Array.of(Number.POSITIVE_INFINITY), 1, 0.01)).toBe(null);
  });
});

describe("rounding with feedback", () => {
  it("reports the error of the outputs that it brings about", () => {
    fc.assert(
      fc.property(drawn, ({ seed, columns }) => {
        const one = drawCase(seed, columns);
        const scales = new BlockScales(blockMagnitudes(one.w));
        const { codes, error } = roundWithFeedback(one.w, scales, feedbackOf(one.h, columns, 0.01)!);
        const wanted = outputError(one, valuesOf(codes, scales), extraOf(one, 0.01));
        expect(Math.abs(error - wanted)).toBeLessThan(1e-7 * wanted + 1e-12);
      }),
      runs,
    );
  });

  it("is rounding to the nearest level where no column goes with another", () => {
    fc.assert(
      fc.property(drawn, ({ seed, columns }) => {
        const { w, h } = drawCase(seed, columns);
        const diagonal = h.map((value, i) => (i % (columns + 1) === 0 ? value : 0));
        const scales = new BlockScales(blockMagnitudes(w));
        const { codes } = roundWithFeedback(w, scales, feedbackOf(diagonal, columns, 0.01)!);
        for (const [i, code] of codes.entries()) {
          const scale = scales.values[Math.floor(i / NF4_BLOCKS.block)];
          const distances = [...NF4_LEVELS.keys()].map((level) => Math.abs(levelValue(level, scale) - w[i]));
          expect(distances[code]).toBeLessThanOrEqual(Math.min(...distances) + 1e-7 * Math.abs(scale));
        }
      }),
      runs,
    );
  });

  it("leaves outputs no further off than rounding each weight by itself does", async () => {
    await fc.assert(
      fc.asyncProperty(drawn, async ({ seed, columns }) => {
        const one = drawCase(seed, columns);
        const scales = new BlockScales(blockMagnitudes(one.w));
        const { error } = roundWithFeedback(one.w, scales, feedbackOf(one.h, columns, 0.01)!);
        const nearest = outputError(one, await roundedToNearest(one), extraOf(one, 0.01));
        // A greedy choice may lose on a row of few columns, where blocks cross rows and scales are not chosen.
        expect(error).toBeLessThanOrEqual(nearest * (columns % 64 === 0 ? 1 : 1.5) + 1e-12);
      }),
      { numRuns: 30 },
    );
  });

  it("gives tensors that every reader of NF4 reads as the values it meant, to the bit", async () => {
    await fc.assert(
      fc.asyncProperty(drawn, async ({ seed, columns }) => {
        const one = drawCase(seed, columns);
        const feedback = feedbackOf(one.h, columns, 0.01)!;
        const scales = new BlockScales(blockMagnitudes(one.w));
        const { codes } = roundWithFeedback(one.w, scales, feedback);
        const nf4 = calibratedNf4("w", one.w, feedback);
        expect(nf4.table).toEqual(nf4Table({ offset: scales.offset }));
        using store = new ParamStore(device, "weights");
        uploadNf4(store, "w", nf4);
        using dense = device.scope(() => denseMatrix(store, "w", [one.rows, columns]));
        expect([...(await dense.read())]).toEqual([...valuesOf(codes, scales)]);
      }),
      runs,
    );
  });

  it("refuses a weight that is not finite, by name", () => {
    const one = drawCase(1, 64);
    one.w[3] = Number.NaN;
    expect(() => calibratedNf4("some.weight", one.w, feedbackOf(one.h, 64, 0.01)!)).toThrow(
      expect.objectContaining({
        code: "L-NF4-FINITE",
        message: expect.stringContaining("some.weight: value 3"),
      }),
    );
  });
});

describe("moments", () => {
  it("of values are those of what attention puts out for any v_proj", async () => {
    const exact = new CpuDevice({ precision: "f64" });
    await fc.assert(
      fc.asyncProperty(fc.nat(), async (seed) => {
        const pick = new TestRandom(seed);
        const [T, heads, width, parts] = [
          pick.int(1, 12),
          pick.int(1, 3),
          2 * pick.int(1, 3),
          pick.int(1, 3),
        ];
        const d = parts * width;
        const [y, weighed] = exact.scope(() => {
          const { ops } = exact;
          const tensor = (...shape: number[]) =>
            exact.tensor(pick.normals(shape.reduce((a, b) => a * b, 1)), shape);
          const [q, k, x, w] = [
            [1, T, heads, width],
            [1, T, 1, width],
            [1, T, d],
            [width, d],
          ].map((shape) => tensor(...shape));
          const total = exact.zeros([d, d]);
          expect(addAttended(ops, total, x, q, k, k, null, null, {})).toBe(true);
          const v = ops.reshape(ops.linear(x, w, null), { shape: [1, T, 1, width] });
          // Σ |w · x|² = Σ_ij (w H)_ij w_ij
          return [ops.attention(q, k, v, null, null, {}), ops.mul(ops.matmul(w, total), w)];
        });
        const [outputs, moments] = [[...(await y.read())], [...(await weighed.read())]];
        y.dispose();
        weighed.dispose();
        const sum = outputs.reduce((a, b) => a + b * b, 0);
        expect(Math.abs(moments.reduce((a, b) => a + b, 0) - sum)).toBeLessThan(1e-6 * (1 + sum));
      }),
      runs,
    );
  });

  it("of keys count the first token of each sequence by its length", () => {
    const batch = { inputIds: new Int32Array(60), batchSize: 1, length: 60, attentionMask: null };
    const counted = [
      ...sinkWeights({ ...batch, segments: [...Array(60).keys()].map((t) => (t < 40 ? 0 : 1)) }),
    ];
    expect(counted.map((weight) => weight ** 2 > 1)).toEqual(counted.map((_, t) => t === 0 || t === 40));
    expect(counted[0] ** 2).toBeCloseTo(10, 5);
    expect(counted[40] ** 2).toBeCloseTo(5, 5);
    expect(sinkWeights(batch)[0] ** 2).toBeCloseTo(15, 5);
  });
});

describe("a calibrated model", () => {
  let folder: string;
  let model: string;
  let data: string;
  const at = (name: string): string => join(folder, name);

  beforeEach(async () => {
    folder = temporaryFolder();
    ({ model } = await writeTinyModel(folder));
    data = at("text.jsonl");
    const rows = Array.from({ length: 40 }, (_, i) =>
      JSON.stringify({ text: `Row ${i} has ${i * 7} apples.` }),
    );
    await writeFile(data, rows.join("\n"));
  });

  const calibration = () => ({ data: [data], tokens: 300 });

  /** Final states of the calibration text. */
  async function states(path: string): Promise<Float32Array[]> {
    const files = await openModel(path);
    const rows = await calibrationRows(calibration(), await files.tokenizer(), files.config);
    using decoder = new Decoder(files.config, await loadWeights(device, files.config, files.checkpoint));
    await files.close();
    return Promise.all(
      rows.map(async (row) => {
        using h = device.scope(() => residualStream(decoder, null, decoder.prepare(row), {}));
        return (await h.read()) as Float32Array;
      }),
    );
  }

  it("computes on its text what is nearer to the model than without calibration, and is the same each time", async () => {
    await convert(model, at("plain"), "nf4");
    await convert(model, at("calibrated"), "nf4", { calibration: calibration() });
    await convert(model, at("again"), "nf4", { calibration: calibration(), maxShardBytes: 5000 });
    const [own, plain, calibrated, again] = await Promise.all(
      [model, at("plain"), at("calibrated"), at("again")].map(states),
    );
    const distance = (other: Float32Array[]) =>
      own.flatMap((row, r) => [...row.map((value, i) => (value - other[r][i]) ** 2)]).reduce((a, b) => a + b);
    expect(distance(calibrated)).toBeLessThan(0.9 * distance(plain));
    expect(again).toEqual(calibrated);
    const sizes = await Promise.all(
      ["plain", "calibrated"].map(
        async (name) => (await readFile(join(at(name), "model.safetensors"))).length,
      ),
    );
    expect(sizes[0]).toBe(sizes[1]);
  });

  it("takes the tokens it is told to, rows of its context that records share and do not see each other in", async () => {
    const { tokenizer } = byteTokenizer();
    const rows = await calibrationRows(calibration(), tokenizer, { ...MODEL, maxPositionEmbeddings: 100 });
    expect(rows.reduce((sum, { length }) => sum + length, 0)).toBe(300);
    for (const { inputIds, length, segments, attentionMask } of rows) {
      expect(length).toBeLessThanOrEqual(100);
      expect([inputIds.length, segments?.length ?? length, attentionMask]).toEqual([length, length, null]);
    }
    expect(rows.some(({ segments }) => segments != null)).toBe(true);
  });

  it("takes records evenly through the data, each once, and of a long one what a row holds", async () => {
    const { tokenizer } = byteTokenizer();
    const taken = async (texts: readonly string[], tokens?: number) => {
      await writeFile(data, texts.map((text) => JSON.stringify({ text })).join("\n"));
      const options = { data: [data], ...(tokens !== undefined && { tokens }) };
      const rows = await calibrationRows(options, tokenizer, { ...MODEL, maxPositionEmbeddings: 100 });
      const ids = rows.flatMap(({ inputIds }) => Array.from(inputIds));
      return {
        ids,
        records: tokenizer
          .decode(ids, { skipSpecial: true })
          .split(/(?<=;)/)
          .sort(),
      };
    };
    const texts = Array.from({ length: 65 }, (_, i) => `${10 + i};`);
    for (const count of [1, 2, 63, 64, 65]) {
      expect((await taken(texts.slice(0, count))).records).toEqual(texts.slice(0, count));
    }
    const all = texts.slice(0, 64);
    const quarter = await taken(all, (await taken(all)).ids.length / 4);
    expect(quarter.records).toEqual(all.filter((_, i) => i % 4 === 0));
    const long = await taken(["a".repeat(300), "b".repeat(300)]);
    expect(long.ids.map((id) => tokenizer.decode([id])).join("")).toBe("a".repeat(100) + "b".repeat(100));
  });

  it("is what the command makes with --calibrate, whose other flags want it", async () => {
    const flags = ["convert", "--model", model, "--output", at("made"), "--dtype", "nf4", "--device", "cpu"];
    const lonely = await sidenet(...flags, "--calibration-tokens", "300");
    expect([lonely.exitCode, lonely.err]).toEqual([2, expect.stringContaining("--calibrate")]);
    const made = await sidenet(...flags, "--calibrate", data, "--calibration-tokens", "300");
    expect(made.exitCode, made.err).toBe(0);
    await convert(model, at("wanted"), "nf4", { calibration: calibration() });
    const [a, b] = await Promise.all(
      ["made", "wanted"].map((name) => readFile(join(at(name), "model.safetensors"))),
    );
    expect(a.equals(b)).toBe(true);
  });

  it("is refused by name where it cannot be", async () => {
    const refused = async (more: object, type: "nf4" | "f16" = "nf4", source = model) =>
      errorOf(convert(source, at("out"), type, { calibration: { ...calibration(), ...more } }));
    expect(await refused({}, "f16")).toMatchObject({ code: "L-CONVERT-TYPE" });
    await writeFile(at("empty.jsonl"), "\n");
    expect(await refused({ data: [at("empty.jsonl")] })).toMatchObject({ code: "L-DATA" });
    await mkdir(at("wide"));
    const files = await openModel(model);
    const tensors = modelTensors(files.config, files.checkpoint, device);
    const wide = tensors.map((t) =>
      t.name.endsWith("1.mlp.down_proj.weight") ? { ...t, shape: [16, 18944] } : t,
    );
    const rows = await calibrationRows(calibration(), await files.tokenizer(), files.config);
    expect(() => new CalibratedLayers(device, files.config, wide, rows)).toThrow(
      new RegExp(`1.mlp.down_proj.weight.*18944.*2.9 GB.*${MAX_COLUMNS}`),
    );
    expect(() => new CalibratedLayers(device, files.config, tensors, [])).toThrow(/has no tokens/);
    await files.close();
  });

  it("is refused where what comes to a layer is not finite", async () => {
    const config = { ...MODEL, vocabSize: 259 };
    const source = await putModel(at("huge"), config, "F32");
    const bytes = await readFile(join(source, "model.safetensors"));
    const header = Number(bytes.readBigUInt64LE(0));
    const entry = JSON.parse(bytes.toString("utf8", 8, 8 + header))["model.embed_tokens.weight"];
    for (let i = 8 + header + entry.data_offsets[0]; i < 8 + header + entry.data_offsets[1]; i += 4)
      bytes.writeFloatLE(Number.NaN, i);
    await writeFile(join(source, "model.safetensors"), bytes);
    await writeFile(join(source, "tokenizer.json"), JSON.stringify(byteTokenizer().json));
    const error = await errorOf(convert(source, at("out"), "nf4", { calibration: calibration() }));
    expect(error).toMatchObject({
      code: "L-CALIBRATION",
      message: expect.stringMatching(/layer 0.*q_proj.*not finite/),
    });
  });
});
