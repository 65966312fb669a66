/** Steps whose commands a GPU is given again (`Device.repeat`) train as those that run the model's code. */
import { type Device, Random, TestRandom } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import {
  type LabeledBatch,
  type MakeLoss,
  type MethodOptions,
  type ModelConfig,
  makeAdapter,
  Trainer,
  type TrainerOptions,
} from "../src/index.ts";
import { evaluateLosses } from "../src/training/evaluate-loss.ts";
import { lossOf } from "../src/training/loss.ts";
import { drawModel, randomDecoder } from "./tiny-model.ts";

const METHODS: MethodOptions[] = [
  { method: "ladder" },
  { method: "lora" },
  { method: "lora", lora: { dropout: 0.3 } },
  { method: "full" },
  { method: "head" },
];

/** The library's loss, and the squared distance from the frozen model. */
const nearFrozen: MakeLoss = (decoder, adapter) => {
  const likelihood = lossOf({})(decoder, adapter);
  return {
    ...likelihood,
    readsFrozen: true,
    mean(ops, y, inputs) {
      const distance = ops.sub(y, inputs.frozen!);
      return ops.add(likelihood.mean(ops, y, inputs), ops.mean(ops.mul(distance, distance)));
    },
  };
};

/** A batch of this shape; which tokens are padding and which are scored is drawn. */
function drawRows(pick: TestRandom, model: ModelConfig, batchSize: number, length: number): LabeledBatch {
  const size = batchSize * length;
  const inputIds = pick.ints(size, 0, model.vocabSize - 1);
  const attentionMask = new Uint8Array(size).fill(1);
  const labels = new Int32Array(size).fill(-100);
  for (let b = 0; b < batchSize; b++) {
    const end = pick.int(2, length);
    const start = pick.int(0, end - 2);
    attentionMask.fill(0, b * length + end, (b + 1) * length);
    for (let t = start; t < end; t++) labels[b * length + t] = inputIds[b * length + t];
  }
  return { inputIds, labels, attentionMask, batchSize, length };
}

/** Splits each row into two sequences. */
const packed = (batch: LabeledBatch): LabeledBatch => ({
  ...batch,
  attentionMask: null,
  segments: Int32Array.from(batch.inputIds, (_, i) => Number(i % batch.length >= batch.length / 2)),
});

interface Run {
  readonly losses: number[];
  readonly norms: number[];
  readonly evaluated: number[];
  readonly flops: object;
  readonly parameters: number[][];
  readonly peakBytes: number;
  /** Passes that ran the decoder's code. */
  readonly passes: number;
}

/** Trains on these batches, with an evaluation on some of them after every fourth, beside one of the frozen model. */
async function train(
  device: Device,
  model: ModelConfig,
  method: MethodOptions,
  batches: readonly LabeledBatch[],
  options: Partial<TrainerOptions> & { readonly prefix: readonly number[]; readonly isRepeatable: boolean },
): Promise<Run> {
  const { prefix, isRepeatable, ...rest } = options;
  using decoder = randomDecoder(device, model);
  decoder.readPrefix(prefix);
  using adapter = makeAdapter(method, decoder, "tiny");
  if (!isRepeatable) Object.defineProperty(adapter, "isRepeatable", { value: false });
  using trainer = new Trainer(decoder, adapter, {
    learningRate: (step) => 0.01 / (1 + step),
    ...rest,
  });
  const hidden = vi.spyOn(decoder, "hidden");
  device.memory.resetPeak();
  const [losses, norms, evaluated]: number[][] = [[], [], []];
  let passes = 0;
  for (const [i, batch] of batches.entries()) {
    hidden.mockClear();
    const { loss, gradNorm } = await trainer.step(batch);
    losses.push(loss);
    norms.push(gradNorm);
    if (i % 4 === 3) evaluated.push(...(await evaluateLosses(decoder, [null, adapter], batches.slice(0, 5))));
    passes += hidden.mock.calls.length;
  }
  const parameters = [];
  for (const [, tensor] of adapter.parameters) parameters.push([...(await tensor.read())]);
  const { peakBytes } = device.memory.peak();
  return { losses, norms, evaluated, flops: trainer.flops.byOp, parameters, peakBytes, passes };
}

const shapes = fc.array(
  fc.record({ batchSize: fc.integer({ min: 1, max: 3 }), length: fc.constantFrom(9, 60) }),
  {
    minLength: 1,
    maxLength: 2,
  },
);

const cases = fc.record({
  seed: fc.nat(),
  shapes,
  isPacked: fc.boolean(),
  hasPrefix: fc.boolean(),
  microBatchSize: fc.constantFrom(null, 1, 2),
  gradientCheckpointing: fc.boolean(),
  saved: fc.constantFrom("f32" as const, "f16" as const),
  isNearFrozen: fc.boolean(),
});

describe.skipIf(process.env.SIDENET_DEVICE === "cpu")("repeated steps", () => {
  const opened: Device[] = [];
  beforeAll(async () => {
    opened.push(await openNodeWebGpu(), await openNodeWebGpu({ adapterClass: "discrete" }));
  });
  afterAll(() => {
    for (const device of opened) device.dispose();
  });

  it.each(METHODS)("train as others, to the bit, with $method $lora", async (method) => {
    let [passes, plainPasses] = [0, 0];
    await fc.assert(
      fc.asyncProperty(
        cases,
        async ({ seed, shapes, isPacked, hasPrefix, saved, isNearFrozen, ...options }) => {
          const pick = new TestRandom(seed);
          const model = drawModel(pick);
          const batches = Array.from({ length: 10 }, () => {
            const { batchSize, length } = pick.oneOf(shapes);
            const batch = drawRows(pick, model, batchSize, length);
            return isPacked ? packed(batch) : batch;
          });
          const prefix = hasPrefix && !isPacked && method.method === "ladder" ? [1, 3, 5] : [];
          const run = (device: Device, isRepeatable: boolean) =>
            train(device, model, method, batches, {
              ...options,
              savedFormats: { saved, rungs: saved },
              ...(isNearFrozen && method.method !== "full" && { loss: nearFrozen }),
              prefix,
              isRepeatable,
            });
          const device = opened[seed % opened.length];
          const live = device.memory.liveBytes;
          const { passes: some, ...repeated } = await run(device, true);
          const { passes: all, ...plain } = await run(device, false);
          expect(repeated).toEqual(plain);
          expect(device.memory.liveBytes).toBe(live);
          passes += some;
          plainPasses += all;
        },
      ),
      { numRuns: Number(process.env.SIDENET_RUNS ?? 5), seed: Number(process.env.SIDENET_SEED ?? 20260101) },
    );
    if (method.lora) expect(passes).toBe(plainPasses);
    else expect(passes).toBeLessThan(0.8 * plainPasses);
  });

  it("are not taken for evaluations by another loss, model or selection of adapters", async () => {
    const [device] = opened;
    const pick = new TestRandom(2);
    const model = drawModel(pick);
    using decoder = randomDecoder(device, model, 1);
    using other = randomDecoder(device, model, 2);
    const [adapter, second, last] = [1, 2, 3].map((seed) => {
      const made = makeAdapter({ method: "ladder" }, decoder, "tiny");
      for (const [stream, [, tensor]] of [...made.parameters].entries())
        device.assign(tensor, new Random(seed, stream).normals(tensor.size, 0.3));
      return made;
    });
    const batch = packed(drawRows(pick, model, 2, 9));
    const next = { ...batch };
    const size: MakeLoss = () => ({
      count: () => 1,
      upload: () => [],
      mean: (ops, y) => ops.mean(ops.mul(y, y)),
    });
    const doubled: MakeLoss = () => ({
      ...size(decoder, null),
      mean: (ops, y) => ops.scale(ops.mean(ops.mul(y, y)), { factor: 2 }),
    });
    /** One that uploads nothing depends on what the host knows of each batch. */
    const byHost: MakeLoss = () => ({
      count: () => 1,
      mean: (ops, y, { batch }) => ops.scale(ops.mean(ops.mul(y, y)), { factor: 1 + Number(batch === next) }),
    });
    const evaluations = [
      () => evaluateLosses(decoder, [adapter], [batch], { loss: byHost }),
      () => evaluateLosses(decoder, [adapter], [next], { loss: byHost }),
      () => evaluateLosses(decoder, [adapter], [batch], { loss: size }),
      () => evaluateLosses(decoder, [adapter], [batch], { loss: doubled }),
      () => evaluateLosses(other, [adapter], [batch], { loss: size }),
      () => evaluateLosses(decoder, [null, adapter], [batch], { loss: size }),
      () => evaluateLosses(decoder, [adapter, last], [batch], { loss: size }),
      () => evaluateLosses(decoder, [second, last], [batch], { loss: size }),
      () => evaluateLosses(decoder, [null], [batch], { loss: size }),
      () => evaluateLosses(decoder, [null], [batch]),
      () => evaluateLosses(decoder, [adapter], [batch]),
    ];
    const expected = [];
    device.onOp = () => {}; // what is watched does not repeat
    for (const evaluate of evaluations) expected.push(await evaluate());
    device.onOp = null;
    for (let round = 0; round < 5; round++)
      for (const [i, evaluate] of evaluations.entries()) expect(await evaluate()).toEqual(expected[i]);
    for (const [i, evaluate] of evaluations.entries())
      for (let round = 0; round < 5; round++) expect(await evaluate()).toEqual(expected[i]);
    for (const made of [adapter, second, last]) made.dispose();
  });

  it("repeat the passes of evaluations too", async () => {
    const [device] = opened;
    const pick = new TestRandom(1);
    const model = drawModel(pick);
    using decoder = randomDecoder(device, model);
    using adapter = makeAdapter({ method: "ladder" }, decoder, "tiny");
    const batches = Array.from({ length: 6 }, () => packed(drawRows(pick, model, 2, 9)));
    const alone = [];
    for (const batch of batches) {
      device.onOp = () => {}; // what is watched does not repeat
      alone.push(await evaluateLosses(decoder, [null, adapter], [batch]));
      device.onOp = null;
    }
    const hidden = vi.spyOn(decoder, "hidden");
    const repeated = [];
    for (const batch of batches) repeated.push(await evaluateLosses(decoder, [null, adapter], [batch]));
    expect(repeated).toEqual(alone);
    expect(hidden).toHaveBeenCalledTimes(3);
  });
});
