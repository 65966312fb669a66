import { SidenetError } from "@sidenet/tensor";
import { type Command, Option } from "commander";
import { isGgufPath } from "../formats/model-files.ts";
import { exportAdapter } from "../node/export-adapter.ts";
import { addConfigOptions } from "./config-options.ts";
import { addOutputOptions, convertAndTell, type OutputFlags, refuseShards } from "./convert.ts";
import { deviceOption, jsonOption, peakJson, withDevice } from "./device.ts";
import { hubOptions } from "./download-progress.ts";
import type { Outcome, Session } from "./session.ts";
import { formatBytes } from "./table.ts";
import type { Report } from "./terminal.ts";

interface ExportFlags extends OutputFlags {
  readonly adapter: string;
  readonly as: "adapter" | "merged";
}

const HELP = `
--as adapter writes the adapter alone, checked against its model: a LoRA in the format of Python's PEFT, a Ladder or xLadder
in that of docs/adapter-format.md. --as merged writes the model with a LoRA (or a trained head) merged into its weights: a
folder, or a GGUF file for llama.cpp. A side network cannot be merged, since it is a network of its own.

Examples:
  $ npx sidenet export --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter out/lora --output out/peft --as adapter --dtype f16
  $ npx sidenet export --model out/smollm2 --adapter out/lora --output out/merged
  $ npx sidenet export --model out/smollm2 --adapter out/lora --output out/merged.gguf --dtype q8_0`;

export function defineExport(program: Command, session: Session): void {
  const command = addOutputOptions(program.command("export"))
    .description("Write a trained adapter, or the model merged with it, for other programs.")
    .requiredOption("--adapter <dir>", "adapter: output folder of train, or a LoRA saved by PEFT")
    .addOption(new Option("--as <what>", "what to write").choices(["adapter", "merged"]).default("merged"))
    .addOption(deviceOption())
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(exportTrained));
  addConfigOptions(command);
}

async function exportTrained(report: Report, flags: ExportFlags): Promise<Outcome> {
  const { model, adapter, output, dtype: type, maxShard: maxShardBytes, overwrite } = flags;
  refuseShards(flags, flags.as === "merged");
  if (flags.as === "merged") {
    return convertAndTell(report, { model, output, type, adapter, maxShardBytes, overwrite }, flags.device);
  }
  if (type === "nf4" || type === "q8_0" || isGgufPath(output)) {
    throw new SidenetError(
      "C-USAGE",
      `an adapter is written to a folder in f32, f16 or bf16, not ${isGgufPath(output) ? "to a .gguf file" : `in ${type}`}.`,
    );
  }
  return withDevice(flags.device, report, async (device) => {
    const summary = await exportAdapter(device, {
      model,
      adapter,
      output,
      type,
      overwrite,
      hub: hubOptions(report),
    });
    report.print(
      `${output}: ${summary.kind} adapter, ${summary.parameters} parameters, ${formatBytes(summary.size_bytes)}`,
    );
    return { json: { ...summary, ...peakJson(device) } };
  });
}
