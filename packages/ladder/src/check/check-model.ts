import { SidenetError, type Tensor } from "@sidenet/tensor";
import * as z from "zod";
import type { Checkpoint } from "../formats/checkpoint.ts";
import { CONFIG, INDEX, WEIGHTS } from "../formats/model-files.ts";
import { openSafetensorsShards } from "../formats/safetensors-shards.ts";
import { generate } from "../generation/generate.ts";
import type { Adapter } from "../methods/adapter.ts";
import { residualStream } from "../methods/residual-stream.ts";
import { batchLoss, type LabeledBatch } from "../model/batch-loss.ts";
import { type ModelConfig, parseModelConfig } from "../model/config.ts";
import { Decoder } from "../model/decoder.ts";
import { loadWeights } from "../model/load-weights.ts";
import { type Comparison, exactError, relativeError } from "./compare.ts";
import {
  type CaseFolder,
  type CheckContext,
  caseTolerances,
  type ExpectedTensors,
  readExpected,
  readJson,
  SkipCase,
  toleranceOf,
} from "./golden-case.ts";
import { type HostTensor, readAndFree, selectRows } from "./host-tensor.ts";

const rows = z.array(z.array(z.int())).min(1);

const batchSchema = z
  .object({
    input_ids: rows,
    attention_mask: rows.nullish(),
    labels: rows,
    prompt_ids: z.array(z.int()).min(1),
    max_new_tokens: z.int().positive(),
  })
  .refine(
    ({ input_ids: ids, attention_mask: mask, labels }) =>
      [ids, labels, mask ?? ids].every(
        (table) => table.length === ids.length && table.every((row) => row.length === ids[0].length),
      ),
    "input_ids, attention_mask and labels differ in shape",
  );

/** A batch with labels, a prompt to continue, and a mask of the B · T positions whose values are compared. */
export interface GoldenBatch extends LabeledBatch {
  readonly promptIds: readonly number[];
  readonly maxNewTokens: number;
  /** 1 from the first visible position of a row on: earlier values are undefined. */
  readonly compared: Uint8Array;
}

export async function readBatch(folder: CaseFolder): Promise<GoldenBatch> {
  const batch = await readJson(folder, "batch.json", batchSchema);
  const mask = batch.attention_mask ?? null;
  const compared = batch.input_ids.flatMap((ids, b) => {
    const first = mask ? mask[b].findIndex((visible) => visible !== 0) : 0;
    return ids.map((_, t) => (first >= 0 && t >= first ? 1 : 0));
  });
  return {
    inputIds: batch.input_ids.flat(),
    attentionMask: mask?.flat() ?? null,
    labels: batch.labels.flat(),
    batchSize: batch.input_ids.length,
    length: batch.input_ids[0].length,
    promptIds: batch.prompt_ids,
    maxNewTokens: batch.max_new_tokens,
    compared: Uint8Array.from(compared),
  };
}

/** The configuration of a model folder. Throws `SkipCase` for one that cannot be run. */
export async function readModelConfig(folder: CaseFolder): Promise<ModelConfig> {
  const json = await readJson(folder, CONFIG, z.unknown());
  try {
    return parseModelConfig(json, `${folder.name}/config.json`);
  } catch (error) {
    throw error instanceof SidenetError ? new SkipCase(error.message) : error; // a family or a field that is not supported
  }
}

async function openCheckpoint(folder: CaseFolder): Promise<Checkpoint> {
  if (!(await folder.has(INDEX))) return folder.open(WEIGHTS);
  return openSafetensorsShards(INDEX, await folder.json(INDEX), (file) => folder.open(file));
}

/** Loads the model of a folder. */
export async function loadModel(
  folder: CaseFolder,
  config: ModelConfig,
  { device, dtype }: CheckContext,
): Promise<Decoder> {
  const checkpoint = await openCheckpoint(folder);
  try {
    return new Decoder(config, await loadWeights(device, config, checkpoint, { dtype }));
  } finally {
    await checkpoint.close();
  }
}

/**
 * Runs one forward pass and reads its values by golden name: `hidden_states.i`, with a side network `side_states.k` and `y`,
 * then `logits` [B,T,V] and `loss`.
 */
export async function observe(
  decoder: Decoder,
  adapter: Adapter | null,
  batch: LabeledBatch,
): Promise<Map<string, HostTensor>> {
  const { device } = decoder;
  const states: Record<string, Tensor> = {};
  try {
    const results = device.scope(() => {
      const y = residualStream(decoder, adapter, decoder.prepare(batch), {
        onHidden: (i, h) => (states[`hidden_states.${i}`] = device.retain(h)),
        onSideState: (k, s) => (states[`side_states.${k}`] = device.retain(s)),
      });
      const head = adapter?.head ?? decoder.head;
      const logits = decoder.logits(device.ops, y, head);
      return { y, logits, loss: batchLoss(decoder, device.ops, y, batch, head) };
    });
    return await readAndFree({ ...results, ...states });
  } finally {
    for (const tensor of Object.values(states)) tensor.dispose("the failed check");
  }
}

/**
 * Compares states [B,T,...] at the compared positions; values elsewhere only have to be finite. The case must have those
 * that are required, and may have any other result. Throws what `ExpectedTensors.take` throws.
 */
export function compareStates(
  required: readonly string[],
  results: ReadonlyMap<string, HostTensor>,
  expected: ExpectedTensors,
  batch: GoldenBatch,
  toleranceOfState: (name: string) => number,
): Comparison[] {
  const states = [...results].filter(([name]) => name !== "loss");
  const compared = states.filter(([name]) => required.includes(name) || expected.has(name));
  return compared.map(([tensor, out]) => {
    const ref = expected.take(tensor, out);
    const tolerance = toleranceOfState(tensor);
    if (!Array.from(out.values).every(Number.isFinite)) {
      return { tensor, error: Number.POSITIVE_INFINITY, tolerance };
    }
    const selected = ({ values }: HostTensor) => selectRows(values, batch.compared);
    return { tensor, error: relativeError(selected(out), selected(ref)), tolerance };
  });
}

/** Compares the greedy continuation of the prompt, token by token. */
export async function compareGreedy(
  decoder: Decoder,
  adapter: Adapter | null,
  batch: GoldenBatch,
  expected: ExpectedTensors,
): Promise<Comparison> {
  const ids = await generate(decoder, adapter, batch.promptIds, { maxTokens: batch.maxNewTokens });
  const ref = expected.take("greedy", { dtype: "i32", shape: [ids.length] });
  return { tensor: "greedy", error: exactError(ids, ref.values), tolerance: 0 };
}

/** Compares the loss. */
export function compareLoss(
  results: ReadonlyMap<string, HostTensor>,
  expected: ExpectedTensors,
  tolerance: number,
): Comparison {
  const loss = results.get("loss")!;
  return { tensor: "loss", error: relativeError(loss.values, expected.take("loss", loss).values), tolerance };
}

const caseSchema = z.looseObject({ tolerance: caseTolerances });

/** Checks a model: every hidden state, logits, loss, and a greedy continuation with the key-value cache. */
export async function checkModel(folder: CaseFolder, context: CheckContext): Promise<Comparison[]> {
  const config = await readModelConfig(folder);
  const { tolerance } = await readJson(folder, "case.json", caseSchema);
  const limit = (quantity: string) => toleranceOf(tolerance, quantity, context.dtype);
  const batch = await readBatch(folder);
  const expected = await readExpected(folder);
  using decoder = await loadModel(folder, config, context);
  const results = await observe(decoder, null, batch);
  const required = [...results.keys()].filter((name) => name !== "y");
  const limitOf = (name: string) => limit(name === "logits" ? name : "hidden_states");
  const comparisons = [
    ...compareStates(required, results, expected, batch, limitOf),
    compareLoss(results, expected, limit("loss")),
    await compareGreedy(decoder, null, batch, expected),
  ];
  expected.finish();
  return comparisons;
}
