/** A model from any format that is read to a safetensors folder or a GGUF file, one tensor in memory at a time. */
import { stat } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { type Device, SidenetError } from "@sidenet/tensor";
import { CalibratedLayers } from "../calibration/calibrated-layers.ts";
import type { GgufWriteType } from "../formats/gguf-encode.ts";
import { ggufModelFields, ggufModelTensors } from "../formats/gguf-model.ts";
import { streamGguf } from "../formats/gguf-write.ts";
import { isGgufPath } from "../formats/model-files.ts";
import type { Adapter } from "../methods/adapter.ts";
import { type ModelTensor, mergeAdapter, modelTensors } from "../methods/model-tensors.ts";
import { parameterCount } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { openAdapter, openFullWeights } from "./adapter-files.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { calibrationRows } from "./calibration-rows.ts";
import { ggufTokenizer } from "./carry-tokenizer.ts";
import {
  type ConvertOptions,
  type ConvertProgress,
  type ConvertSummary,
  type ConvertType,
  type OutgoingModel,
  reporting,
} from "./convert-options.ts";
import { makeFolder } from "./make-folder.ts";
import { type ModelFiles, openModel } from "./open-model.ts";
import { checkOutput } from "./output-folder.ts";
import { writeSafetensorsFolder } from "./safetensors-folder.ts";

const GGUF_TYPES: Partial<Record<ConvertType, GgufWriteType>> = { f32: "F32", f16: "F16", q8_0: "Q8_0" };

function checkType({ output, type }: ConvertOptions): "gguf" | "safetensors" {
  const format = isGgufPath(output) ? "gguf" : "safetensors";
  const known = format === "gguf" ? Object.keys(GGUF_TYPES) : ["f32", "f16", "bf16", "nf4"];
  if (known.includes(type)) return format;
  const other = format === "gguf" ? "a folder holds it" : "a file that ends in .gguf holds it";
  throw new SidenetError(
    "L-CONVERT-TYPE",
    `${type} is not written to ${format === "gguf" ? "a GGUF file" : "a safetensors folder"}: ${known.join(", ")} are; ${other}.`,
  );
}

/** What NF4 weights are chosen by; null where nothing is asked for. Throws `L-CONVERT-TYPE` for another type than nf4. */
async function openCalibration(
  device: Device,
  { calibration = null, type }: ConvertOptions,
  files: ModelFiles,
  config: ModelConfig,
  tensors: readonly ModelTensor[],
): Promise<CalibratedLayers | null> {
  if (calibration === null) return null;
  if (type !== "nf4") {
    throw new SidenetError(
      "L-CONVERT-TYPE",
      `calibration is for nf4, which alone is rounded by it; ${type} was asked for. Add --dtype nf4, or leave --calibrate out.`,
    );
  }
  const rows = await calibrationRows(calibration, await files.tokenizer(), config);
  return new CalibratedLayers(device, config, tensors, rows);
}

const FLOATS = ["F32", "F16", "BF16"];

function warningsFor({ type, adapter }: ConvertOptions, tensors: readonly ModelTensor[]): string[] {
  const stored = [...new Set(tensors.map(({ storedAs }) => storedAs))].filter(
    (name) => !FLOATS.includes(name),
  );
  if (stored.length === 0 || type === "nf4") return [];
  const kinds = stored.join(", ");
  if (adapter !== null) {
    return [
      `the base is quantized (${kinds}): the adapter is merged into what its weights were rounded to, not into the original ` +
        "model. That is what it was trained with if it was trained on this file; for another base, merge into that one.",
    ];
  }
  return [
    `the source is quantized (${kinds}): what is written are its rounded values, not the original model.`,
  ];
}

async function writeGguf(
  model: OutgoingModel,
  options: ConvertOptions,
  onProgress: ConvertProgress,
): Promise<Pick<ConvertSummary, "size_bytes" | "files" | "missing">> {
  const tokenizer = await ggufTokenizer(model.files, model.config);
  const type = GGUF_TYPES[options.type]!;
  const name = basename(options.model).replace(/(-\d{5}-of-\d{5})?\.gguf$/i, "");
  const metadata = { ...ggufModelFields(model.config, name, type), ...tokenizer.fields };
  const tensors = ggufModelTensors(model.config, model.tensors, type);
  const reported = reporting(tensors, ({ sizeBytes }) => sizeBytes, onProgress);
  await makeFolder(dirname(resolve(options.output)));
  await writeFileAtomic(options.output, streamGguf(metadata, reported));
  const { size } = await stat(options.output);
  return { size_bytes: size, files: [basename(options.output)], missing: tokenizer.missing };
}

/**
 * Converts a model; the output appears whole or not at all. `device` computes what is in NF4 or merged; plain formats pass it
 * by. Throws `L-CONVERT-TYPE`, `L-OUTPUT`, `L-CONVERT-RANGE`, `L-MERGE`, and what opening the model and adapter, reading
 * and writing throw.
 */
export async function convertModel(
  device: Device,
  options: ConvertOptions,
  onProgress: ConvertProgress = () => {},
): Promise<ConvertSummary> {
  const format = checkType(options);
  const { model, adapter: adapterFolder, output } = options;
  const kind = format === "gguf" ? "file" : "folder";
  await checkOutput(
    output,
    kind,
    options.overwrite,
    adapterFolder === null ? [model] : [model, adapterFolder],
  );
  const files = await openModel(model, options.hub);
  try {
    const whole = adapterFolder === null ? null : await openFullWeights(adapterFolder, files.config);
    try {
      using adapter =
        adapterFolder === null || whole ? null : await openAdapter(adapterFolder, device, files.config);
      const own = modelTensors(files.config, whole ?? files.checkpoint, device);
      return await writeModel(device, files, { own, adapter, format }, options, onProgress);
    } finally {
      await whole?.close();
    }
  } finally {
    await files.close();
  }
}

interface ModelParts {
  readonly own: readonly ModelTensor[];
  readonly adapter: Adapter | null;
  readonly format: ConvertSummary["format"];
}

/** Writes a model of these tensors, with an adapter as part of them. */
async function writeModel(
  device: Device,
  files: ModelFiles,
  { own, adapter, format }: ModelParts,
  options: ConvertOptions,
  onProgress: ConvertProgress,
): Promise<ConvertSummary> {
  const { model, output, type: dtype } = options;
  const { config, tensors } = adapter
    ? mergeAdapter(files.config, own, adapter)
    : { config: files.config, tensors: own };
  using calibrated = await openCalibration(device, options, files, config, tensors);
  const outgoing: OutgoingModel = { files, config, tensors, type: dtype, calibrated };
  const written =
    format === "gguf"
      ? await writeGguf(outgoing, options, onProgress)
      : await writeSafetensorsFolder(device, outgoing, options, onProgress);
  const warnings = warningsFor(options, own);
  return { model, output, format, dtype, parameters: parameterCount(tensors), ...written, warnings };
}
