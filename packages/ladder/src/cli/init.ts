/** `sidenet init`: a config file for `sidenet train`, with every setting explained. */
import { existsSync } from "node:fs";
import { SidenetError } from "@sidenet/tensor";
import type { Command } from "commander";
import { writeFileAtomic } from "../node/atomic-write.ts";
import { jsonOption } from "./device.ts";
import type { Outcome, Session } from "./session.ts";
import { configText } from "./settings.ts";
import type { Report } from "./terminal.ts";
import { addTrainSettings, checkFlags, type TrainingFlags } from "./training-options.ts";

const HELP = `
Settings that are given as flags are written as they are, the others as comments with their defaults.

Examples:
  $ npx sidenet init run.yaml --model SmolLM2-135M-Instruct.Q4_1.gguf --data train.jsonl --output out/run
  $ npx sidenet train --config run.yaml`;

export function defineInit(program: Command, session: Session): void {
  const command = program
    .command("init")
    .description("Write a config file for train, with every setting explained.")
    .argument("[file]", "YAML file to write", "run.yaml");
  addTrainSettings(command)
    .option("--overwrite", "replace a file of that name")
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(init));
}

async function init(
  report: Report,
  file: string,
  { overwrite, ...flags }: TrainingFlags & { overwrite?: boolean },
  command: Command,
): Promise<Outcome> {
  checkFlags(command, { ...flags, data: flags.data ?? [] });
  if (existsSync(file) && !overwrite) {
    throw new SidenetError("C-USAGE", `${file} exists already. Give another name, or --overwrite.`);
  }
  const head = `Settings of a training run: npx sidenet train --config ${file}\nFlags of the command line count more than this file.`;
  await writeFileAtomic(file, configText(command, head));
  report.print(`${file}: a config with every setting. Then: npx sidenet train --config ${file}`);
  return { json: { config: file } };
}
