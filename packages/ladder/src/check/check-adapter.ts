import { Tape } from "@sidenet/autograd";
import * as z from "zod";
import type { Adapter } from "../methods/adapter.ts";
import { type AdapterConfig, loadAdapter, parseAdapterConfig } from "../methods/load-adapter.ts";
import { residualStream } from "../methods/residual-stream.ts";
import { batchLoss, type LabeledBatch } from "../model/batch-loss.ts";
import type { Decoder } from "../model/decoder.ts";
import { evaluateLoss } from "../training/evaluate-loss.ts";
import { Trainer } from "../training/trainer.ts";
import {
  compareGreedy,
  compareLoss,
  compareStates,
  type GoldenBatch,
  loadModel,
  observe,
  readBatch,
  readModelConfig,
} from "./check-model.ts";
import { type Comparison, distance, norm, relativeError, worstOf, worstRelative } from "./compare.ts";
import {
  type CaseFolder,
  type CheckContext,
  caseTolerances,
  type ExpectedTensors,
  inCase,
  malformed,
  readExpected,
  readJson,
  toleranceOf,
} from "./golden-case.ts";
import { type HostTensor, readAndFree } from "./host-tensor.ts";

const trainingSchema = z.object({
  steps: z.int().positive(),
  lr: z.number(),
  betas: z.tuple([z.number(), z.number()]),
  eps: z.number(),
  weight_decay: z.number(),
  max_grad_norm: z.number(),
});

const caseSchema = z.looseObject({
  training: trainingSchema,
  tolerance: caseTolerances,
  trainable_parameters: z.int().optional(),
  exactly_zero_gradients: z.array(z.string()).default([]),
});

type Training = z.infer<typeof trainingSchema>;
type Results = ReadonlyMap<string, HostTensor>;
/** Tolerance of a quantity of `case.json`. */
type Limit = (quantity: string) => number;

const isGate = (name: string): boolean => name.endsWith(".gate");

/** Reads `adapter_config.json`. Throws `SkipCase` for fields that are wrong or not supported. */
async function readAdapterConfig(folder: CaseFolder): Promise<AdapterConfig> {
  const json = await readJson(folder, "adapter_config.json", z.unknown());
  return inCase(() => parseAdapterConfig(json, "adapter_config.json"));
}

/** Every gradient of the loss at the start, before clipping, by parameter name. */
function startGradients(decoder: Decoder, adapter: Adapter, batch: LabeledBatch): Promise<Results> {
  const { device } = decoder;
  return readAndFree(
    device.scope(() => {
      using tape = new Tape(device, adapter.parameters);
      const y = residualStream(decoder, adapter, decoder.prepare(batch), { ops: tape });
      const gradients = tape.backward(batchLoss(decoder, tape, y, batch, adapter.head));
      return Object.fromEntries(
        [...adapter.parameters].map(([name, tensor]) => [name, gradients.get(tensor)!]),
      );
    }),
  );
}

const stacked = (names: readonly string[], valuesOf: (name: string) => ArrayLike<number>): number[] =>
  names.flatMap((name) => Array.from(valuesOf(name)));

function compareGradients(
  gradients: Results,
  expected: ExpectedTensors,
  limit: Limit,
  zeros: readonly string[],
): Comparison[] {
  const names = [...gradients.keys()];
  const out = (name: string) => gradients.get(name)!.values;
  const ref = (name: string) => expected.take(`grad.${name}`, gradients.get(name)!).values;
  const all = stacked(names, ref);
  const floor = 1e-3 * norm(all); // the errors of nearly vanishing gradients are relative to this
  const single = names
    .filter((name) => !isGate(name))
    .map((name) => ({
      tensor: `grad.${name}`,
      error: distance(out(name), ref(name)) / Math.max(norm(ref(name)), floor),
      tolerance: limit("grad"),
    }));
  const whole = {
    tensor: "grad_all",
    error: relativeError(stacked(names, out), all),
    tolerance: limit("grad_all"),
  };
  const gates = names.filter(isGate);
  const gate = gates.length > 0 && {
    tensor: "grad_gate",
    error: relativeError(stacked(gates, out), stacked(gates, ref)),
    tolerance: limit("grad_gate"),
  };
  const zero = zeros.map((name) => {
    if (!gradients.has(name)) throw malformed(`exactly_zero_gradients names "${name}", which is not trained`);
    return { tensor: `grad.${name} (exactly zero)`, error: norm(out(name)), tolerance: 0 };
  });
  return [...single, whole, ...(gate ? [gate] : []), ...zero];
}

const vector = (values: readonly number[]): HostTensor => ({ dtype: "f32", shape: [values.length], values });

/** Trains some steps on one batch: the loss before each and after the last, gradient norms, and the final parameters. */
async function train(
  decoder: Decoder,
  adapter: Adapter,
  batch: LabeledBatch,
  training: Training,
): Promise<{ losses: HostTensor; gradNorms: HostTensor; after: Results }> {
  const { steps, lr, betas, eps, weight_decay: weightDecay, max_grad_norm: maxGradNorm } = training;
  using trainer = new Trainer(decoder, adapter, {
    learningRate: () => lr,
    betas,
    eps,
    weightDecay,
    maxGradNorm,
  });
  const losses: number[] = [];
  const gradNorms: number[] = [];
  for (let step = 0; step < steps; step++) {
    const report = await trainer.step(batch);
    losses.push(report.loss);
    gradNorms.push(report.gradNorm);
  }
  losses.push(await evaluateLoss(decoder, adapter, [batch]));
  const after = new Map<string, HostTensor>();
  for (const [name, tensor] of adapter.parameters)
    after.set(name, { dtype: "f32", shape: tensor.shape, values: await tensor.read() });
  return { losses: vector(losses), gradNorms: vector(gradNorms), after };
}

/** Compares the adapter before training: states, loss, and the greedy continuation of the prompt. */
async function compareStart(
  decoder: Decoder,
  adapter: Adapter,
  batch: GoldenBatch,
  expected: ExpectedTensors,
  limit: Limit,
): Promise<Comparison[]> {
  const results = await observe(decoder, adapter, batch);
  const required = [...results.keys()].filter(
    (name) => name === "logits" || (adapter.side && (name === "y" || name.startsWith("side_states."))),
  );
  return [
    // The golden cases have no tolerance for the states, so that of the logits is used.
    ...compareStates(required, results, expected, batch, () => limit("logits")),
    compareLoss(results, expected, limit("losses")),
    await compareGreedy(decoder, adapter, batch, expected),
  ];
}

/** Checks an adapter with its model: forward pass, gradients, some steps of training, a greedy continuation. */
export async function checkAdapter(folder: CaseFolder, context: CheckContext): Promise<Comparison[]> {
  const adapterConfig = await readAdapterConfig(folder);
  const model = folder.folder(adapterConfig.config.base_model_name_or_path);
  const config = await readModelConfig(model);
  const { training, tolerance, ...about } = await readJson(folder, "case.json", caseSchema);
  const limit = (quantity: string) => toleranceOf(tolerance, quantity, context.dtype);
  const batch = await readBatch(folder);
  const expected = await readExpected(folder);
  using decoder = await loadModel(model, config, context);
  const checkpoint = await folder.open("adapter_model.safetensors");
  using adapter = await loadAdapter(context.device, adapterConfig, config, checkpoint).finally(
    checkpoint.close,
  );
  const comparisons = await compareStart(decoder, adapter, batch, expected, limit);
  const gradients = await startGradients(decoder, adapter, batch);
  comparisons.push(...compareGradients(gradients, expected, limit, about.exactly_zero_gradients));
  if (about.trainable_parameters !== undefined) {
    const error = Math.abs(adapter.parameters.count - about.trainable_parameters);
    comparisons.push({ tensor: "trainable_parameters", error, tolerance: 0 });
  }
  const { losses, gradNorms, after } = await train(decoder, adapter, batch, training);
  const worstAfter = worstOf(
    [...after].map(([name, parameter]) => ({
      tensor: `after.${name}`,
      error: relativeError(parameter.values, expected.take(`after.${name}`, parameter).values),
      tolerance: limit("after"),
    })),
  );
  const worstStep = (tensor: string, steps: HostTensor): Comparison => ({
    tensor,
    error: worstRelative(steps.values, expected.take(tensor, steps).values),
    tolerance: limit(tensor),
  });
  comparisons.push(worstStep("losses", losses), worstStep("grad_norms", gradNorms));
  if (worstAfter) comparisons.push(worstAfter);
  expected.finish();
  return comparisons;
}
