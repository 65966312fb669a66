import { CpuDevice, type Device, SidenetError } from "@sidenet/tensor";
import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import { isGgufPath } from "../formats/model-files.ts";
import { CALIBRATION_TOKENS, type CalibrationOptions } from "../node/calibration-rows.ts";
import { convertModel } from "../node/convert-model.ts";
import { CONVERT_TYPES, type ConvertOptions, type ConvertType } from "../node/convert-options.ts";
import { addConfigOptions } from "./config-options.ts";
import { addFieldOptions, type FieldFlags, fieldMapping, modelOption } from "./data-options.ts";
import { deviceOption, jsonOption, peakJson, withDevice } from "./device.ts";
import { hubOptions } from "./download-progress.ts";
import { byteSize, positiveInteger } from "./options.ts";
import type { Outcome, Session } from "./session.ts";
import { formatBytes } from "./table.ts";
import type { Report } from "./terminal.ts";

/** Of `addOutputOptions`, and where it is computed. */
export interface OutputFlags {
  readonly model: string;
  readonly output: string;
  readonly dtype: ConvertType;
  readonly maxShard: number;
  readonly overwrite: boolean;
  readonly device: DeviceName;
}

interface CalibrationFlags extends FieldFlags {
  readonly calibrate?: readonly string[];
  readonly calibrationTokens?: number;
}

const HELP = `
Reads a folder, a .safetensors or .gguf file, or a hub id, as train does. An output that ends in .gguf is a GGUF file for
llama.cpp (f32, f16, q8_0); any other output is a folder in the Hugging Face layout (f32, f16, bf16, or nf4 as bitsandbytes
stores it, with double quantization). The tokenizer is copied. The output appears whole or not at all.

--calibrate chooses NF4 codes by the layers' outputs on a text (GPTQ) instead of rounding each weight independently. The model
loses much less quality, and the format is the same. Use text like that the model is meant for, such as its training data,
but never its test data.

Examples:
  $ npx sidenet convert --model SmolLM2-135M-Instruct.Q4_1.gguf --output out/smollm2 --dtype f16
  $ npx sidenet convert --model out/smollm2 --output out/smollm2-nf4 --dtype nf4
  $ npx sidenet convert --model out/smollm2 --output out/smollm2-nf4 --dtype nf4 --calibrate train.jsonl
  $ npx sidenet convert --model out/smollm2 --output out/smollm2.Q8_0.gguf --dtype q8_0`;

/** Bytes of a safetensors file, unless given. */
const MAX_SHARD = 5e9;

/** Throws `C-USAGE` where no safetensors file of a model is written. */
export function refuseShards({ maxShard, output }: OutputFlags, isModel: boolean): void {
  if (maxShard === MAX_SHARD || (isModel && !isGgufPath(output))) return;
  const what = isModel ? "a GGUF file" : "an adapter";
  throw new SidenetError(
    "C-USAGE",
    `--max-shard splits a model's folder, and ${what} is one file. Leave it out.`,
  );
}

/** Options of every command that writes a model. */
export function addOutputOptions(command: Command): Command {
  return command
    .addOption(modelOption().makeOptionMandatory())
    .requiredOption("--output <path>", "folder to write, or a file that ends in .gguf")
    .addOption(new Option("--dtype <type>", "type of the matrices").choices(CONVERT_TYPES).default("f16"))
    .addOption(
      new Option("--max-shard <size>", "maximum size of one safetensors file, such as 500MB")
        .argParser(byteSize)
        .default(MAX_SHARD, "5GB"),
    )
    .option("--overwrite", "replace --output if it holds a model", false);
}

/** Converts and reports. A device is opened only if something is computed. */
export async function convertAndTell(
  report: Report,
  options: ConvertOptions,
  device: DeviceName | null,
): Promise<Outcome> {
  const run = (on: Device) =>
    convertModel(on, { ...options, hub: hubOptions(report) }, (done, total) =>
      report.progress(`writing ${options.output}: ${Math.round((100 * done) / total)} %`),
    );
  const { summary, peak } =
    device === null
      ? { summary: await run(new CpuDevice()), peak: {} }
      : await withDevice(device, report, async (on) => ({ summary: await run(on), peak: peakJson(on) }));
  for (const warning of summary.warnings) report.note(`warning: ${warning}`);
  for (const part of summary.missing) report.note(`missing: ${part}`);
  report.print(
    `${summary.output}: ${summary.format} ${summary.dtype}, ${summary.parameters} parameters, ${formatBytes(summary.size_bytes)} ` +
      `(${summary.files.join(", ")})`,
  );
  return { json: { ...summary, ...peak } };
}

export function defineConvert(program: Command, session: Session): void {
  const command = addOutputOptions(program.command("convert"))
    .description("Write a model in another format or type.")
    .option("--calibrate <file...>", "data files whose text calibrates the NF4 weights (GPTQ)")
    .option(
      "--calibration-tokens <n>",
      `tokens of them to take, evenly through each (default: ${CALIBRATION_TOKENS})`,
      positiveInteger,
    );
  addFieldOptions(command)
    .addOption(deviceOption())
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(convert));
  addConfigOptions(command);
}

async function convert(report: Report, flags: OutputFlags & CalibrationFlags): Promise<Outcome> {
  const { model, output, dtype: type, maxShard: maxShardBytes, overwrite } = flags;
  refuseShards(flags, true);
  const calibration = calibrationOf(flags);
  const options = { model, output, type, adapter: null, maxShardBytes, overwrite, calibration };
  return convertAndTell(report, options, type === "nf4" ? flags.device : null);
}

/** Throws `C-USAGE` for flags of a calibration without one. */
function calibrationOf(flags: CalibrationFlags): CalibrationOptions | null {
  const { calibrate: data, calibrationTokens: tokens } = flags;
  const fields = fieldMapping(flags);
  if (data === undefined) {
    if (tokens === undefined && Object.keys(fields).length === 0) return null;
    throw new SidenetError(
      "C-USAGE",
      "--calibration-tokens, --text, --prompt, --completion and --map say how --calibrate reads its files: give some, or leave them out.",
    );
  }
  return { data, fields, ...(tokens === undefined ? {} : { tokens }) };
}
