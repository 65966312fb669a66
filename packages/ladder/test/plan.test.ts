import { checkpoint, Tape } from "@sidenet/autograd";
import { CATEGORIES, CpuDevice, type Device, MetaDevice, SidenetError, TestRandom } from "@sidenet/tensor";
import { openNodeWasm, openNodeWebGpu } from "@sidenet/tensor/node";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { METHODS } from "../src/methods/adapter.ts";
import { type MethodOptions, makeAdapter } from "../src/methods/method.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import type { SideNetwork } from "../src/methods/side-network.ts";
import { emptyWeights } from "../src/model/base-storage.ts";
import { parameterCount, type RunLayer } from "../src/model/block.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { Decoder, decoderParameters } from "../src/model/decoder.ts";
import { bundledConfigs } from "../src/node/bundled-configs.ts";
import { openModelConfig } from "../src/node/open-model.ts";
import {
  longestContext,
  measureStep,
  type Plan,
  type PlanOptions,
  plannedBatch,
  planStep,
  type StepOptions,
} from "../src/training/plan.ts";
import type { MemoryOptions } from "../src/training/trainer.ts";
import { drawModel } from "./tiny-model.ts";

const runs = (numRuns: number) => ({
  numRuns: Number(process.env.SIDENET_RUNS ?? numRuns),
  seed: Number(process.env.SIDENET_SEED ?? 20260102),
});
const drawn = fc.record({ seed: fc.nat(), scale: fc.constantFrom(1, 0.5, 0) });

/** A step of a method of the library. */
type MethodStep = StepOptions & { readonly method: MethodOptions };

/** Any method with any levers over any small model. */
function drawStep(pick: TestRandom): { config: ModelConfig; options: MethodStep } {
  const model = drawModel(pick);
  // A vocabulary over which GPUs cut the sum of a gradient into parts.
  const config = pick.chance(0.3) ? { ...model, vocabSize: 400 } : model;
  const L = config.numHiddenLayers;
  const method = pick.oneOf(METHODS);
  const quantizeBlocks = method === "qlora" || (method !== "full" && pick.chance(0.5));
  const ladder = {
    layers: pick.int(1, L),
    reduction: pick.oneOf([1, 2, 3]),
    fusion: pick.oneOf(["add", "gate"] as const),
    initialRung: pick.chance(0.3),
    rungNorm: pick.chance(0.7),
  };
  const delta = pick.int(1, L);
  const options: MethodStep = {
    method: {
      method,
      ladder,
      xladder: { ...ladder, delta, layers: delta + pick.int(0, 3) },
      lora: { rank: pick.int(1, 5), dropout: pick.oneOf([0, 0.25]) },
    },
    storage: { dtype: method === "full" ? "f32" : pick.oneOf(["f32", "f16"] as const), quantizeBlocks },
    memory: {
      gradientCheckpointing: pick.chance(0.5),
      optimizerState: pick.oneOf(["f32", "8bit"] as const),
      savedFormats: {
        saved: pick.oneOf(["f32", "f16"] as const),
        rungs: pick.oneOf(["f32", "f16", "int8"] as const),
      },
      ...(pick.chance(0.3) ? {} : { lossChunkBytes: pick.oneOf([2 ** 25, 4096]) }),
      microBatchSize: pick.oneOf([null, 1, 2]),
      chunkTokens: pick.oneOf([512, 3, 16]),
    },
    batchSize: pick.int(1, 3),
    context: pick.int(2, 40),
    gradientAccumulation: pick.oneOf([1, 2, 3]),
    prefixTokens:
      method === "ladder" || method === "xladder" || method === "head" ? pick.oneOf([0, 0, 7]) : 0,
  };
  return { config, options };
}

/** What a plan and a run have in common; null where the drawn sizes are refused. */
function measured(run: () => Plan): Omit<Plan, "timeline"> | null {
  try {
    return run();
  } catch (error) {
    if (error instanceof SidenetError && error.code === "L-OPTION") return null;
    throw error;
  }
}

const devices: [string, () => Promise<Device>][] = [
  ["cpu", async () => new CpuDevice()],
  ["wasm", () => openNodeWasm({ threads: 1 })],
];
if (process.env.SIDENET_DEVICE !== "cpu") {
  devices.push(["webgpu", () => openNodeWebGpu()]);
  devices.push(["webgpu, by the kernels of a GPU", () => openNodeWebGpu({ adapterClass: "discrete" })]);
}

describe.each(devices)("a plan for %s", (name, open) => {
  it("equals the run of any method with any levers: peak by category to the byte, operations by op", async () => {
    const device = await open();
    try {
      const methods = new Set<string>();
      await fc.assert(
        fc.asyncProperty(drawn, async ({ seed, scale }) => {
          const { config, options } = drawStep(new TestRandom(seed, scale));
          const plan = measured(() => planStep(config, { ...options, profile: device.profile }));
          const run = measured(() => measureStep(device, config, options));
          await device.synchronize();
          expect(run).toEqual(plan);
          if (plan === null) return;
          methods.add(options.method.method);
          const sum = CATEGORIES.reduce((total, category) => total + plan.peakBytesByCategory[category], 0);
          expect(sum).toBe(plan.peakBytes);
          const phases = Object.values(plan.flopsByOp).flatMap((counts) => Object.values(counts));
          expect(phases.reduce((total, flops) => total + flops, 0)).toBe(plan.flops);
        }),
        runs(name.startsWith("webgpu") ? 12 : 24),
      );
      expect(methods.size).toBeGreaterThan(3);
      expect(device.memory.liveCount).toBe(0);
    } finally {
      device.dispose();
    }
  });
});

/** Bytes that the allocator takes for `elements` of this many bytes. */
const stored = (elements: number, bytes: number): number => Math.ceil((elements * bytes) / 16) * 16;

/** docs/memory.md, "What a side layer keeps": by tensor, for N = B · T tokens. */
function savedByFormula(
  decoder: Decoder,
  options: MethodStep,
  { recompute, bytes }: { recompute: boolean; bytes: number },
): number {
  const { config, device } = decoder;
  using adapter = makeAdapter(options.method, decoder, "tiny");
  const side = adapter as SideNetwork;
  const { shape } = side;
  const [T, N] = [options.context, options.batchSize * options.context];
  const { hiddenSize: d } = config;
  const {
    hiddenSize: dSide,
    intermediateSize: f,
    numAttentionHeads: q,
    numKeyValueHeads: kv,
    headDim: c,
  } = shape;
  const l = side.config.num_hidden_layers;
  expect(device.memory.live.saved).toBe(0);
  const activation = (elements: number) => stored(elements, bytes);
  const residual = (elements: number) => stored(elements, 4);
  const kept = recompute
    ? activation(N * dSide)
    : 2 * (activation(N * dSide) + residual(N)) + // what both norms read, and its inverse root
      2 * activation(N * dSide) + // what q, k, v and gate, up read
      2 * activation(N * q * c) +
      2 * activation(N * kv * c) + // q, k, v and what attention makes, which o reads
      residual(2 * N * q) + // attention's maximum and log-sum
      3 * activation(N * f) + // gate, up and their product, which down reads
      (shape.qkNorm
        ? activation(N * q * c) + activation(N * kv * c) + residual(N * q) + residual(N * kv)
        : 0);
  const shared = 2 * stored(T * (c / 2), 4) + stored(N, 1); // rope's tables and the mask, for all layers
  const end =
    2 * activation(N * dSide) +
    residual(N) + // the last norm of the side network, and what U reads
    activation(N * d) +
    residual(N) + // y, which the final norm reads
    residual(N * d); // the gradient that the loss leaves for it
  return l * kept + shared + end;
}

it("keeps for the backward pass what the formula in docs/memory.md says, and no block of the backbone", () => {
  let checked = 0;
  fc.assert(
    fc.property(
      drawn,
      fc.boolean(),
      fc.boolean(),
      fc.constantFrom("ladder", "xladder"),
      (draw, recompute, half, method) => {
        const pick = new TestRandom(draw.seed, draw.scale);
        const { config, options: any } = drawStep(pick);
        const plain = { ...any.method.ladder, fusion: "add", initialRung: false, rungNorm: true } as const;
        const xladder = { ...any.method.xladder, ...plain, layers: any.method.xladder!.layers! };
        const options = { ...any, method: { ...any.method, method, ladder: plain, xladder } } as MethodStep;
        const device = new MetaDevice();
        using decoder = new Decoder(
          config,
          emptyWeights(device, config, { dtype: "f16", quantizeBlocks: true }),
        );
        const wanted = measured(
          () => savedByFormula(decoder, options, { recompute, bytes: half ? 2 : 4 }) as never,
        );
        if (wanted === null) return;
        using adapter = makeAdapter(options.method, decoder, "tiny");
        using tape = new Tape(device, adapter.parameters, {
          formats: half ? { saved: "f16", rungs: "f16" } : {},
        });
        forward(decoder, adapter, tape, options, recompute);
        expect(device.memory.live.saved).toBe(wanted);
        const rungs = (adapter as SideNetwork).config.rungs.length;
        const N = options.batchSize * options.context;
        expect(device.memory.live.rungs).toBe(rungs * stored(N * config.hiddenSize, half ? 2 : 4));
        const named = tape.records.flatMap(({ tracked, saved }) => [
          ...tracked,
          ...saved.map(({ name }) => name),
        ]);
        expect(named).not.toContain("codes"); // what every linear layer of the backbone would save
        const blocks = tape.records.filter(({ op }) => op === (recompute ? "checkpoint" : "attention"));
        expect(blocks.length).toBe((adapter as SideNetwork).config.num_hidden_layers);
        checked++;
      },
    ),
    runs(40),
  );
  expect(checked).toBeGreaterThan(10);
});

/** The forward pass of a training step. */
function forward(
  decoder: Decoder,
  adapter: ReturnType<typeof makeAdapter>,
  tape: Tape,
  { batchSize, context }: StepOptions,
  recompute: boolean,
): void {
  const { device } = decoder;
  const batch = plannedBatch(batchSize, context);
  device.scope(() => {
    const runLayer: RunLayer | null = recompute ? (fn, inputs) => checkpoint(tape, fn, inputs) : null;
    const y = residualStream(decoder, adapter, decoder.prepare(batch), { ops: tape, runLayer });
    const targets = device.tensor(batch.labels, [batch.labels.length], { dtype: "i32" });
    decoder.loss(tape, y, targets);
  });
}

const PUBLISHED: Readonly<Record<string, number>> = {
  "Llama-2-7B": 6_738_415_616,
  "Llama-3.1-8B": 8_030_261_248,
  "Qwen2.5-0.5B": 494_032_768,
  "Qwen2.5-1.5B": 1_543_714_304,
  "Qwen2.5-7B": 7_615_616_512,
  "SmolLM2-1.7B": 1_711_376_384,
  "SmolLM2-135M": 134_515_008,
  "SmolLM2-360M": 361_821_120,
};

describe("bundled configurations", () => {
  it("have the published number of parameters, each under its name and its name on the hub", async () => {
    expect(await bundledConfigs()).toEqual(Object.keys(PUBLISHED));
    for (const [name, count] of Object.entries(PUBLISHED)) {
      const config = await openModelConfig(name);
      expect(parameterCount(decoderParameters(config)), name).toBe(count);
    }
    expect(await openModelConfig("meta-llama/Llama-2-7b-hf")).toEqual(await openModelConfig("llama-2-7b"));
    expect(await openModelConfig("Qwen/Qwen2.5-7B")).toEqual(await openModelConfig("Qwen2.5-7B"));
  });
});

/** What the command's defaults come to for a method. */
const lean = (method: "ladder" | "qlora", gradientCheckpointing: boolean): Omit<PlanOptions, "context"> => ({
  method: { method },
  storage: { dtype: "f16", quantizeBlocks: true },
  memory: {
    gradientCheckpointing,
    optimizerState: "8bit",
    savedFormats: { saved: "f16", rungs: "f16" },
  },
  batchSize: 1,
});

describe("the promises on 7B and 8B models", () => {
  it("Ladder takes at most half of QLoRA's peak at 2k tokens, and at most 6.5 GB on Qwen2.5-7B", async () => {
    const config = await openModelConfig("Qwen2.5-7B");
    const peak = (options: Omit<PlanOptions, "context">) => planStep(config, { ...options, context: 2048 });
    const [ladder, qlora, recomputed] = [lean("ladder", true), lean("qlora", false), lean("qlora", true)].map(
      peak,
    );
    expect(ladder.peakBytes).toBeLessThanOrEqual(6.5e9);
    expect(ladder.peakBytes).toBeLessThanOrEqual(qlora.peakBytes / 2);
    expect(ladder.peakBytes).toBeLessThan(recomputed.peakBytes);
    expect(qlora.peakBytes).toBeGreaterThan(12e9);
    expect(qlora.flops / ladder.flops).toBeGreaterThanOrEqual(1.75);
    expect(recomputed.flops / ladder.flops).toBeGreaterThanOrEqual(2.5);
  });

  it("at 12 GB Ladder reaches 22,000 tokens on Llama-3.1-8B, and one step more would not fit", async () => {
    const config = await openModelConfig("Llama-3.1-8B");
    const options = lean("ladder", true);
    const { context, usable, plan } = longestContext(config, options, 12e9);
    expect(context).toBeGreaterThanOrEqual(22_000);
    expect(usable).toBe(context);
    expect(plan!.peakBytes).toBeLessThanOrEqual(12e9);
    expect(planStep(config, { ...options, context: context + 64 }).peakBytes).toBeGreaterThan(12e9);
  });

  it("knows the difference between what memory holds and what the model was made for", async () => {
    const config = await openModelConfig("Llama-2-7B");
    const { context, usable } = longestContext(config, lean("ladder", true), 12e9);
    expect(usable).toBe(4096);
    expect(context).toBeGreaterThan(usable);
    const none = longestContext(config, lean("ladder", true), 1e9);
    expect(none).toMatchObject({ context: 0, usable: 0, plan: null });
    expect(none.leastBytes).toBe(planStep(config, { ...lean("ladder", true), context: 64 }).peakBytes);
  });
});

it.each<[method: "ladder" | "lora", lean: MemoryOptions, lavish?: MemoryOptions]>([
  ["ladder", { gradientCheckpointing: true }],
  ["lora", { gradientCheckpointing: true }],
  ["lora", { optimizerState: "8bit" }],
  ["lora", { savedFormats: { saved: "f16" } }],
  ["ladder", { savedFormats: { rungs: "int8" } }],
  ["ladder", { lossChunkBytes: 2 ** 20 }],
  ["ladder", { microBatchSize: 1 }],
  ["ladder", { chunkTokens: 64 }, { chunkTokens: 4096 }],
])("a step of %s takes less memory with %o", async (method, lean, lavish = {}) => {
  const config = { ...(await openModelConfig("SmolLM2-135M")), numHiddenLayers: 4 };
  const peak = (memory: MemoryOptions) =>
    planStep(config, {
      method: { method, ladder: { layers: 1 } },
      storage: { dtype: "f16", quantizeBlocks: true },
      memory,
      batchSize: 2,
      context: 4096,
    }).peakBytes;
  expect(peak(lean)).toBeLessThan(peak(lavish));
});

it("a buffer that no GPU of the plan holds, and numbers that are none, are refused in words for code and command", async () => {
  const config = await openModelConfig("Qwen2.5-7B");
  const options = { ...lean("ladder", true), context: 64 };
  const small = { ...options, profile: { maxBufferBytes: 2 ** 28 } };
  expect(() => planStep(config, small)).toThrow(
    /T-TOO-LARGE.*model.embed_tokens.weight.*--quantize-ends, quantizeEmbeddings/,
  );
  expect(() => planStep(config, { ...options, gradientAccumulation: 1.5 })).toThrow(
    /L-OPTION.*gradientAccumulation/,
  );
  expect(() => planStep(config, { ...options, prefixTokens: -1 })).toThrow(/L-OPTION.*prefixTokens/);
});

it("a batch of more tokens than kernels can count is refused before anything is planned", () => {
  expect(() => plannedBatch(2 ** 31, 16)).toThrow(/T-TOO-LARGE.*Lower the context or the batch size/);
  expect(() => plannedBatch(1, 1e99)).toThrow(/T-TOO-LARGE/);
});
