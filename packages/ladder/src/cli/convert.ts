import { CpuDevice, type Device } from "@sidenet/tensor";
import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import { CONVERT_TYPES, type ConvertOptions, type ConvertType, convertModel } from "../node/convert-model.ts";
import { addConfigOptions } from "./config-options.ts";
import { deviceOption, jsonOption, peakJson, withDevice } from "./device.ts";
import { hubOptions } from "./download-progress.ts";
import { byteSize } from "./options.ts";
import type { Outcome, Session } from "./session.ts";
import { formatBytes } from "./table.ts";
import type { Report } from "./terminal.ts";

interface ConvertFlags {
  readonly model: string;
  readonly output: string;
  readonly dtype: ConvertType;
  readonly maxShard: number;
  readonly overwrite: boolean;
  readonly device: DeviceName;
}

const HELP = `
Reads what train reads: a folder, a .safetensors or .gguf file, or a hub id. An output that ends in .gguf is a GGUF file for
llama.cpp (f32, f16, q8_0); any other is a folder of the Hugging Face layout (f32, f16, bf16, or nf4 as bitsandbytes
stores it, with double quantization). The tokenizer goes along. The output appears whole or not at all.

Examples:
  $ npx sidenet convert --model SmolLM2-135M-Instruct.Q4_1.gguf --output out/smollm2 --dtype f16
  $ npx sidenet convert --model out/smollm2 --output out/smollm2-nf4 --dtype nf4
  $ npx sidenet convert --model out/smollm2 --output out/smollm2.Q8_0.gguf --dtype q8_0`;

/** Options of every command that writes a model. */
export function addOutputOptions(command: Command): Command {
  return command
    .requiredOption(
      "--model <path>",
      "folder with config.json, .safetensors or .gguf file, hub id, or tiny-books",
    )
    .requiredOption("--output <path>", "folder to make, or a file that ends in .gguf")
    .addOption(new Option("--dtype <type>", "how matrices are stored").choices(CONVERT_TYPES).default("f16"))
    .option("--max-shard <size>", "largest safetensors file: 500MB, 5GB", byteSize, 5e9)
    .option("--overwrite", "replace what is there, if it is a model", false);
}

/** Converts and tells. A device is opened only where something is computed. */
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
    `${summary.output}: ${summary.format} ${summary.type}, ${summary.parameters} parameters, ${formatBytes(summary.bytes)} ` +
      `(${summary.files.join(", ")})`,
  );
  return { json: { ...summary, ...peak } };
}

export function defineConvert(program: Command, session: Session): void {
  const command = addOutputOptions(program.command("convert"))
    .description("Write a model in another format or type.")
    .addOption(deviceOption())
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(convert));
  addConfigOptions(command);
}

async function convert(report: Report, flags: ConvertFlags): Promise<Outcome> {
  const { model, output, dtype: type, maxShard: maxShardBytes, overwrite } = flags;
  const options = { model, output, type, adapter: null, maxShardBytes, overwrite };
  return convertAndTell(report, options, type === "nf4" ? flags.device : null);
}
