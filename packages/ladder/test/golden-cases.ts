/** Writes small golden cases as golden folders have them, with expectations computed in double or by hand. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Tape } from "@sidenet/autograd";
import { CpuDevice, type Device, ParamStore, type Tensor } from "@sidenet/tensor";
import { concatBytes, encodeSafetensors, type WritableTensor } from "../src/formats/safetensors-write.ts";
import { generate } from "../src/generation/generate.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import { parseSideConfig, sideParameters } from "../src/methods/side-config.ts";
import { SideNetwork } from "../src/methods/side-network.ts";
import type { LabeledBatch } from "../src/model/batch-loss.ts";
import { parseModelConfig } from "../src/model/config.ts";
import { Decoder, decoderParameters, shiftLabels } from "../src/model/decoder.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";
import { Trainer } from "../src/training/trainer.ts";
import { randomWeights } from "./tiny-model.ts";

export type TensorFile = Record<string, WritableTensor>;

export const f32 = (shape: readonly number[], values: ArrayLike<number>): WritableTensor => ({
  dtype: "F32",
  shape,
  data: Float32Array.from(values),
});
export const i32 = (shape: readonly number[], values: ArrayLike<number>): WritableTensor => ({
  dtype: "I32",
  shape,
  data: Int32Array.from(values),
});

/** Writes files by name: tensors as safetensors, text as it is, anything else as JSON. */
export async function writeFolder(folder: string, files: Readonly<Record<string, unknown>>): Promise<void> {
  await mkdir(folder, { recursive: true });
  for (const [name, content] of Object.entries(files)) {
    const data = name.endsWith(".safetensors")
      ? concatBytes(encodeSafetensors(content as TensorFile))
      : typeof content === "string"
        ? content
        : JSON.stringify(content);
    await writeFile(join(folder, name), data);
  }
}

/** Tolerances of an op case: the same for every tensor named. */
export const tolerance = (names: readonly string[], value = 1e-5) => ({
  tolerance: {
    float32: Object.fromEntries(names.map((name) => [name, value])),
    float16: Object.fromEntries(names.map((name) => [name, 2e-3])),
  },
});

/** y = a·b with its gradients, by hand: a[2,3], b[3,2], dy = 1. `nudge` is added to one expected value. */
export const matmulCase = (nudge = 0) => {
  const a = [1, 2, 3, 4, 5, 6];
  const b = [0.5, -1, 2, 0.25, -3, 1];
  const y = [1 * 0.5 + 2 * 2 - 3 * 3, -1 + 2 * 0.25 + 3, 4 * 0.5 + 5 * 2 - 6 * 3, -4 + 5 * 0.25 + 6];
  const rowsB = [-0.5, 2.25, -2]; // sums of b's rows: each row of da
  const columnsA = [5, 7, 9]; // sums of a's columns: each column of db
  return {
    "params.json": { op: "matmul", variant: "nn", ...tolerance(["y", "da", "db"]) },
    "inputs.safetensors": { a: f32([2, 3], a), b: f32([3, 2], b), dy: f32([2, 2], [1, 1, 1, 1]) },
    "expected.safetensors": {
      y: f32([2, 2], [y[0], y[1], y[2], y[3] + nudge]),
      da: f32([2, 3], [...rowsB, ...rowsB]),
      db: f32(
        [3, 2],
        columnsA.flatMap((x) => [x, x]),
      ),
    },
  };
};

function store(device: Device, category: "weights" | "adapter", tensors: TensorFile): ParamStore {
  const params = new ParamStore(device, category);
  for (const [name, { shape, data }] of Object.entries(tensors)) params.add(name, device.tensor(data, shape));
  return params;
}

/** Rows padded on both sides, one without any, so that every rule about masks applies. */
const BATCH = {
  input_ids: [
    [3, 1, 4, 1, 5, 9],
    [0, 0, 2, 6, 5, 3],
    [5, 8, 9, 7, 0, 0],
  ],
  attention_mask: [
    [1, 1, 1, 1, 1, 1],
    [0, 0, 1, 1, 1, 1],
    [1, 1, 1, 1, 0, 0],
  ],
  labels: [
    [-100, 1, 4, 1, 5, 9],
    [-100, -100, -100, 6, 5, 3],
    [5, 8, 9, 7, -100, -100],
  ],
  prompt_ids: [2, 7, 1],
  max_new_tokens: 4,
};

const labeled: LabeledBatch = {
  inputIds: BATCH.input_ids.flat(),
  attentionMask: BATCH.attention_mask.flat(),
  labels: BATCH.labels.flat(),
  batchSize: 3,
  length: 6,
};

export const MODEL = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: 13,
  hidden_size: 12,
  intermediate_size: 20,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 4,
  rms_norm_eps: 1e-5,
  attention_bias: true,
  max_position_embeddings: 32,
  rope_theta: 10000,
};

export const SIDE = {
  method: "ladder",
  base_model_name_or_path: "../../models/tiny",
  num_hidden_layers: 3,
  hidden_size: 6,
  intermediate_size: 8,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 2,
  rungs: [1, 2],
  fusion: "gate",
};

const config = parseModelConfig(MODEL);
const weightFiles = randomWeights(decoderParameters(config), 7);

async function readTensor(tensor: Tensor): Promise<WritableTensor> {
  const values = await tensor.read();
  tensor.dispose();
  return f32(tensor.shape, values);
}

/** What a forward pass shows, in double. */
async function expectForward(decoder: Decoder, side: SideNetwork | null): Promise<TensorFile> {
  const { device } = decoder;
  const seen: Record<string, Tensor> = {};
  const shown = device.scope(() => {
    const y = residualStream(decoder, side, decoder.prepare(labeled), {
      onHidden: (i, h) => (seen[`hidden_states.${i}`] = device.retain(h)),
      onSideState: (k, s) => (seen[`side_states.${k}`] = device.retain(s)),
    });
    return { y, logits: decoder.logits(device.ops, y) };
  });
  const expected: TensorFile = {};
  for (const [name, tensor] of Object.entries({ ...seen, ...shown }))
    expected[name] = await readTensor(tensor);
  const ids = await generate(decoder, side, BATCH.prompt_ids, { maxTokens: BATCH.max_new_tokens });
  return {
    ...expected,
    loss: f32([], [await evaluateLoss(decoder, side, [labeled])]),
    greedy: i32([ids.length], ids),
  };
}

const both = (value: number) => ({ float32: value, float16: 1000 * value });

/** A model folder of `MODEL`; its weights can be replaced without the expectation knowing. */
export async function modelCase(replaced: TensorFile = {}): Promise<Record<string, unknown>> {
  using decoder = new Decoder(config, store(new CpuDevice({ precision: "f64" }), "weights", weightFiles));
  return {
    "config.json": MODEL,
    "model.safetensors": { ...weightFiles, ...replaced },
    "batch.json": BATCH,
    "case.json": { tolerance: { logits: both(1e-5), loss: both(1e-5), hidden_states: both(1e-5) } },
    "expected.safetensors": await expectForward(decoder, null),
  };
}

const TRAINING = {
  steps: 3,
  lr: 1e-3,
  betas: [0.9, 0.999],
  eps: 1e-8,
  weight_decay: 0.01,
  max_grad_norm: 1,
} as const;

/** An adapter folder of `SIDE` beside the model above, with gradients and three steps of training. */
export async function adapterCase(): Promise<Record<string, unknown>> {
  const device = new CpuDevice({ precision: "f64" });
  using decoder = new Decoder(config, store(device, "weights", weightFiles));
  const sideConfig = parseSideConfig(SIDE, "SIDE");
  const sideFiles = randomWeights(sideParameters(sideConfig, config), 7);
  using side = new SideNetwork(sideConfig, config, store(device, "adapter", sideFiles));
  const expected = await expectForward(decoder, side);
  const gradients = device.scope(() => {
    using tape = new Tape(device, side.parameters);
    const y = residualStream(decoder, side, decoder.prepare(labeled), { ops: tape });
    const targets = device.tensor(shiftLabels(labeled.labels, 3, 6), [18], { dtype: "i32" });
    return tape.backward(decoder.loss(tape, y, targets));
  });
  for (const [name, tensor] of side.parameters) {
    expected[`grad.${name}`] = await readTensor(gradients.get(tensor)!);
  }
  const { lr, betas, eps, weight_decay: weightDecay, max_grad_norm: maxGradNorm, steps } = TRAINING;
  const options = { learningRate: () => lr, betas, eps, weightDecay, maxGradNorm };
  using trainer = new Trainer(decoder, side, options);
  const losses: number[] = [];
  const norms: number[] = [];
  for (let step = 0; step < steps; step++) {
    const { loss, gradNorm } = await trainer.step(labeled);
    losses.push(loss);
    norms.push(gradNorm);
  }
  losses.push(await evaluateLoss(decoder, side, [labeled]));
  for (const [name, tensor] of side.parameters) {
    expected[`after.${name}`] = f32(tensor.shape, await tensor.read());
  }
  const quantities = ["logits", "losses", "grad_norms", "grad", "grad_all", "grad_gate", "after"];
  return {
    "adapter_config.json": SIDE,
    "adapter_model.safetensors": sideFiles,
    "batch.json": BATCH,
    "case.json": {
      training: TRAINING,
      trainable_parameters: side.parameters.count,
      tolerance: Object.fromEntries(quantities.map((quantity) => [quantity, both(5e-5)])),
    },
    "expected.safetensors": {
      ...expected,
      losses: f32([steps + 1], losses),
      grad_norms: f32([steps], norms),
    },
  };
}
