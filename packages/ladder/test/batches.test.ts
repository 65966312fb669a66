import { CpuDevice, type Device, Random, TestRandom } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  BatchStream,
  type BatchStreamOptions,
  dataPositionSchema,
  inMemory,
  type StreamedBatch,
} from "../src/data/batch-stream.ts";
import { inBatches, joinRecords, makeBatch, packRows } from "../src/data/batches.ts";
import { mixture } from "../src/data/mixture.ts";
import type { TokenRecord } from "../src/data/records.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { type LabeledBatch, scoredPositions } from "../src/model/batch-loss.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";
import { Trainer } from "../src/training/trainer.ts";
import { drawModel, randomDecoder } from "./tiny-model.ts";

const tokenRecord: fc.Arbitrary<TokenRecord> = fc
  .array(fc.integer({ min: 1, max: 99 }), { minLength: 2, maxLength: 70 })
  .map((inputIds) => ({ inputIds, labels: inputIds.map((id) => (id % 2 ? id : -100)), source: "x" }));

describe("a batch", () => {
  it("holds its records on the left, and padding that is hidden and not scored", () => {
    fc.assert(
      fc.property(fc.array(tokenRecord, { minLength: 1, maxLength: 4 }), (records) => {
        const batch = makeBatch(records, 70);
        const row = (values: ArrayLike<number>, r: number) =>
          Array.from(values).slice(r * batch.length, (r + 1) * batch.length);
        expect(batch.batchSize).toBe(records.length);
        for (const [r, { inputIds, labels }] of records.entries()) {
          const pad = batch.length - inputIds.length;
          const filled = (values: readonly number[], fill: number) => [...values, ...Array(pad).fill(fill)];
          expect(row(batch.inputIds, r)).toEqual(filled(inputIds, 0));
          expect(row(batch.labels, r)).toEqual(filled(labels, -100));
          expect(row(batch.attentionMask as Uint8Array, r)).toEqual(
            filled(Array(inputIds.length).fill(1), 0),
          );
        }
      }),
    );
  });

  it("is padded to a multiple, and never past the longest allowed length", () => {
    fc.assert(
      fc.property(
        fc.array(tokenRecord, { minLength: 1 }),
        fc.integer({ min: 1, max: 48 }),
        (records, multiple) => {
          const { length } = makeBatch(records, 70, multiple);
          const longest = Math.max(...records.map((record) => record.inputIds.length));
          expect(length).toBe(Math.min(Math.ceil(longest / multiple) * multiple, 70));
        },
      ),
    );
  });

  it("has at least one row", () => {
    expect(() => makeBatch([], 70)).toThrow(/L-DATA.*no rows/);
  });

  it("follows the next until every record was in one", () => {
    fc.assert(
      fc.property(fc.array(tokenRecord), fc.integer({ min: 1, max: 5 }), (records, batchSize) => {
        const batches = inBatches(records, batchSize, 70);
        expect(batches.map((batch) => batch.batchSize).reduce((sum, size) => sum + size, 0)).toBe(
          records.length,
        );
        expect(batches.every((batch) => batch.batchSize <= batchSize)).toBe(true);
      }),
    );
  });
});

describe("packing", () => {
  it("places every record once, and fills no row past its capacity", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 60 }),
        fc.integer({ min: 1, max: 80 }),
        (lengths, capacity) => {
          const rows = packRows(lengths, capacity);
          expect(rows.flat().sort((a, b) => a - b)).toEqual([...lengths.keys()]);
          for (const row of rows) {
            const used = row.reduce((sum, item) => sum + lengths[item], 0);
            expect(used <= capacity || row.length === 1).toBe(true);
          }
          // No two rows could be one.
          const sums = rows
            .map((row) => row.reduce((sum, item) => sum + lengths[item], 0))
            .sort((a, b) => a - b);
          if (sums.length > 1) expect(sums[0] + sums[1]).toBeGreaterThan(capacity);
        },
      ),
    );
  });

  it("gives the longest records space first, each where least of it is left", () => {
    expect(packRows([9, 2, 8, 3, 16, 2], 20)).toEqual([
      [4, 1, 5],
      [0, 2, 3],
    ]);
  });

  it("marks the tokens of each record, and scores no first token", () => {
    const row = joinRecords([
      { inputIds: [1, 2], labels: [1, 2], source: "a" },
      { inputIds: [3, 4, 5], labels: [-100, 4, 5], source: "b" },
    ]);
    expect(row).toEqual({
      inputIds: [1, 2, 3, 4, 5],
      labels: [-100, 2, -100, 4, 5],
      segments: [0, 0, 1, 1, 1],
      source: "a; b",
    });
    const batch = makeBatch([row, { inputIds: [6], labels: [6], source: "c" }], 100, 6);
    expect(Array.from(batch.segments!)).toEqual([0, 0, 1, 1, 1, -1, 0, -1, -1, -1, -1, -1]);
  });
});

/** Records of a tiny model's vocabulary, with the prompt of each not scored. */
function drawRecords(random: Random, model: ModelConfig, count: number): TokenRecord[] {
  return Array.from({ length: count }, (_, r) => {
    const inputIds = Array.from({ length: 2 + random.below(9) }, () => random.below(model.vocabSize));
    const prompt = random.below(inputIds.length - 1);
    const labels = inputIds.map((id, i) => (i < prompt ? -100 : id));
    return { inputIds, labels, source: `record ${r}` };
  });
}

const METHODS = ["ladder", "xladder", "lora", "full"] as const;

/** The loss and the gradient's norm in each of a few steps, and the loss after them. */
async function trained(
  device: Device,
  model: ModelConfig,
  method: (typeof METHODS)[number],
  batches: readonly LabeledBatch[],
  memory: object,
): Promise<number[]> {
  using decoder = randomDecoder(device, model);
  using adapter = makeAdapter(
    { method, ladder: { width: 8, layers: 2 }, xladder: { width: 8, delta: 1 }, lora: { rank: 2 }, seed: 3 },
    decoder,
    "tiny",
  );
  using trainer = new Trainer(decoder, adapter, { learningRate: () => 1e-2, ...memory });
  const figures: number[] = [];
  for (let step = 0; step < 3; step++) {
    const { loss, gradNorm } = await trainer.step(batches);
    figures.push(loss, gradNorm);
  }
  return [...figures, await evaluateLoss(decoder, adapter, batches)];
}

describe("a packed row", () => {
  it.each(METHODS)("trains as its records do in rows of their own, whole or in parts: %s", async (method) => {
    const device = new CpuDevice();
    for (let seed = 1; seed <= 2; seed++) {
      const model = { ...drawModel(new TestRandom(seed)), numHiddenLayers: 2 };
      const records = drawRecords(new Random(seed), model, 5);
      const batch = (rows: readonly TokenRecord[]) => makeBatch(rows, 64, 1);
      const apart = await trained(device, model, method, [batch(records)], {});
      const [three, two] = [joinRecords(records.slice(0, 3)), joinRecords(records.slice(3))];
      const unscored = { ...two, labels: two.labels.map(() => -100) };
      const levers: [rows: TokenRecord[][], memory: object][] = [
        [[[three, two]], {}],
        [[[three, two]], { microBatchSize: 1 }],
        [[[three, two]], { gradientCheckpointing: true }],
        [[[three, two]], { chunkTokens: 3 }],
        [[[three], [two]], {}],
        [[records.slice(0, 1), [unscored], records.slice(1)], { microBatchSize: 3 }],
      ];
      for (const [rows, memory] of levers) {
        const packed = await trained(device, model, method, rows.map(batch), memory);
        for (const [i, figure] of packed.entries()) expect(figure).toBeCloseTo(apart[i], 4);
      }
    }
  });

  it("scores as many positions as its records do", () => {
    fc.assert(
      fc.property(fc.array(tokenRecord, { minLength: 1, maxLength: 6 }), (records) => {
        expect(scoredPositions(makeBatch([joinRecords(records)], 500))).toBe(
          scoredPositions(makeBatch(records, 500)),
        );
      }),
    );
  });
});

describe("the order of training", () => {
  const numbered = (count: number) =>
    inMemory(
      Array.from({ length: count }, (_, i) => ({
        inputIds: Array.from({ length: 1 + ((i * 7) % 13) }, () => i),
        labels: Array.from({ length: 1 + ((i * 7) % 13) }, () => i),
        source: String(i),
      })),
    );
  const sizes = fc.record({
    count: fc.integer({ min: 1, max: 40 }),
    batchSize: fc.integer({ min: 1, max: 6 }),
    seed: fc.nat(),
    packLength: fc.option(fc.integer({ min: 8, max: 40 })),
    bucketByLength: fc.boolean(),
  });
  type Sizes = { count: number } & globalThis.Pick<
    BatchStreamOptions,
    "batchSize" | "seed" | "packLength" | "bucketByLength"
  >;
  const open = ({ count, ...options }: Sizes) =>
    new BatchStream(numbered(count), { maxLength: 64, ...options });

  it("visits every record once an epoch, and shuffles each epoch anew", async () => {
    await fc.assert(
      fc.asyncProperty(sizes, async (drawn) => {
        const { count } = drawn;
        const stream = open({ ...drawn, packLength: null, bucketByLength: false });
        const visited: number[] = [];
        while (visited.length < count * 3) visited.push(...(await stream.next()).sources.map(Number));
        for (let epoch = 0; epoch < 3; epoch++) {
          const order = visited.slice(epoch * count, (epoch + 1) * count).sort((a, b) => a - b);
          expect(order).toEqual(Array.from({ length: count }, (_, i) => i));
        }
      }),
    );
    const long = open({ count: 50, batchSize: 50, seed: 1 });
    expect((await long.next()).sources).not.toEqual((await long.next()).sources);
  });

  it("gives callers that do not wait for one another the batches that it gives one after the other", async () => {
    await fc.assert(
      fc.asyncProperty(sizes, async (drawn) => {
        const [one, other] = [open(drawn), open(drawn)];
        const wanted: string[][] = [];
        while (wanted.length < 5) wanted.push([...(await one.next()).sources]);
        const asked = await Promise.all(wanted.map(() => other.next()));
        expect(asked.map(({ sources }) => sources)).toEqual(wanted);
        expect(other.position).toEqual(one.position);
      }),
      { numRuns: 30 },
    );
  });

  it("gives each record equally often, packed or in buckets, and rows of like lengths in the latter", async () => {
    await fc.assert(
      fc.asyncProperty(sizes, async (drawn) => {
        const stream = open(drawn);
        const times = new Map<string, number>();
        // A whole number of epochs is a whole number of windows after as many windows as there are records.
        while (stream.position.window < drawn.count) {
          for (const source of (await stream.next()).sources) {
            for (const one of source.split("; ")) times.set(one, (times.get(one) ?? 0) + 1);
          }
        }
        expect(times.size).toBe(drawn.count);
        expect(new Set(times.values()).size).toBe(1);
      }),
      { numRuns: 30 },
    );
    const bucketed = open({ count: 40, batchSize: 4, seed: 0, bucketByLength: true });
    const plain = open({ count: 40, batchSize: 4, seed: 0 });
    const padding = async (stream: BatchStream) => {
      let padded = 0;
      for (let i = 0; i < 10; i++) {
        const { attentionMask, batchSize, length } = (await stream.next()).batch;
        const visible = Array.from({ length: batchSize }, (_, row) =>
          Uint8Array.from(attentionMask!)
            .subarray(row * length, (row + 1) * length)
            .reduce((sum, bit) => sum + bit, 0),
        );
        padded += visible.reduce((sum, tokens) => sum + Math.max(...visible) - tokens, 0);
      }
      return padded;
    };
    expect(await padding(bucketed)).toBeLessThan(await padding(plain));
  });

  it("goes on at any kept position exactly as it would have", async () => {
    await fc.assert(
      fc.asyncProperty(sizes, fc.nat(30), async (drawn, steps) => {
        const stream = open(drawn);
        for (let i = 0; i < steps; i++) await stream.next();
        const kept = dataPositionSchema.parse(JSON.parse(JSON.stringify(stream.position)));
        const wanted: StreamedBatch[] = [];
        while (wanted.length < 5) wanted.push(await stream.next());
        for (const again of [open(drawn), stream]) {
          again.seek(kept);
          for (const batch of wanted) expect(await again.next()).toEqual(batch);
        }
      }),
      { numRuns: 50 },
    );
  });

  it("refuses a position that its data does not have", async () => {
    const stream = open({ count: 4, batchSize: 2, seed: 0, packLength: 40 });
    stream.seek({ window: 0, batch: 9 });
    await expect(stream.next()).rejects.toThrow(/L-RESUME.*batch 9 of data window 0/);
    expect(() => open({ count: 0, batchSize: 2, seed: 0 })).toThrow(/L-DATA/);
  });
});

describe("several data sets of different weights", () => {
  /** How often each record of an epoch comes, by the set that it is of. */
  const timesOf = async (lengths: readonly number[], weights: readonly number[]): Promise<number[][]> => {
    const sets = lengths.map((length, s) =>
      inMemory(Array.from({ length }, (_, i) => ({ inputIds: [s, i], labels: [s, i], source: "x" }))),
    );
    const epoch = mixture(sets, weights);
    const times = lengths.map((length) => Array<number>(length).fill(0));
    for (let i = 0; i < epoch.length; i++) {
      const [set, record] = (await epoch.get(i)).inputIds;
      times[set][record]++;
    }
    return times;
  };

  it("give every record of a set equally often in an epoch, in the ratio of the weights", async () => {
    expect(await timesOf([2, 3], [1, 2.5])).toEqual([
      [2, 2],
      [5, 5, 5],
    ]);
    expect(await timesOf([1, 2, 1], [0.5, 0.5, 1.5])).toEqual([[1], [1, 1], [3]]);
    const sets = fc.array(
      fc.tuple(fc.integer({ min: 1, max: 4 }), fc.double({ min: 0.2, max: 9, noNaN: true })),
      {
        minLength: 1,
        maxLength: 4,
      },
    );
    await fc.assert(
      fc.asyncProperty(sets, async (drawn) => {
        const weights = drawn.map(([, weight]) => weight);
        const times = await timesOf(
          drawn.map(([length]) => length),
          weights,
        );
        for (const set of times) expect(new Set(set).size).toBe(1);
        const least = weights.indexOf(Math.min(...weights));
        for (const [i, [first]] of times.entries()) {
          // At most 20 times the rarest record, so a ratio is rounded by half a twentieth at most.
          expect(times[least][0]).toBeLessThanOrEqual(20);
          expect(Math.abs(first / times[least][0] / (weights[i] / weights[least]) - 1)).toBeLessThanOrEqual(
            0.0251,
          );
        }
      }),
    );
  });
});
