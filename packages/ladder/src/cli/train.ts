import { SidenetError } from "@sidenet/tensor";
import type { Command } from "commander";
import { writeReport } from "../node/report.ts";
import { readRunFile } from "../node/run/run-folder.ts";
import { addConfigOptions, type Layers } from "./config-options.ts";
import { jsonOption, withDevice } from "./device.ts";
import { refuseOtherMethods, stepSettings } from "./method-options.ts";
import { EXIT, type Outcome, type Session } from "./session.ts";
import { applySettings, checkSettings, currentSettings, type Settings } from "./settings.ts";
import { stopOnSignals } from "./signals.ts";
import type { Report } from "./terminal.ts";
import { describeSummary } from "./train-report.ts";
import { addTrainSettings, runOptions, type TrainingFlags } from "./training-options.ts";
import { showRun } from "./training-run.ts";

/** Flags that are no settings of the run. */
interface InvocationFlags {
  readonly resume?: boolean;
  readonly overwrite?: boolean;
  readonly memoryTimeline?: string;
}

const HELP = `
Data: JSONL, JSON, CSV, TSV, Parquet or text files. Records: {"text"}, {"prompt", "completion"} (trained on the completion),
{"messages": [{"role", "content"}]} (trained on what the assistant says, in the model's chat template), or {"question",
"choices", "label"} (trained on the right choice). Map other field names with --map prompt=question completion=answer.
"a.jsonl:3" samples a file's records three times as often as those of a file without a weight. See docs/guide-data.md.

Writes to the output folder: adapter_config.json, adapter_model.safetensors, checkpoints, metrics.jsonl, report.html.
Ctrl-C stops before the next step and saves a checkpoint; a second Ctrl-C stops at once and leaves the last checkpoint.
--resume continues from there.

Exit codes: 0 done, 1 failed, 2 a mistake in flags or config, 129, 130 or 143 stopped by SIGHUP (closed
terminal), SIGINT or SIGTERM.

Examples:
  $ npx sidenet train --model SmolLM2-135M-Instruct.Q4_1.gguf --data train.jsonl --method ladder --output out/run
  $ npx sidenet train --config run.yaml --set learning-rate=0.002   # sidenet init run.yaml writes one
  $ npx sidenet train --output out/run --resume`;

export function defineTrain(program: Command, session: Session): void {
  const command = program
    .command("train")
    .description(
      "Fine-tune a model: train a side network or a LoRA beside its frozen weights, or all weights of a small one.",
    )
    .option("--resume", "continue from the last checkpoint in --output, if there is one")
    .option("--overwrite", "replace the run that --output holds")
    .option(
      "--memory-timeline <file>",
      "write the live bytes by category after each op of the second step, as JSON lines",
    );
  addTrainSettings(command).addOption(jsonOption()).addHelpText("after", HELP).action(session.action(train));
  addConfigOptions(command, ["model", "data", "output"], (layers) =>
    inheritSettings(session.report, command, layers),
  );
}

/** Settings that fix which records a step gets, and what is trained: with others, a resumed run would be another run. */
const FIXED = [
  ...["method", "batch-size", "seed", "held-out", "eval-data", "pack-length", "bucket-by-length"],
  ...["task", "template", "chat-template", "prefix", "map", "text", "prompt", "completion"],
  ...["reduction", "side-width", "layers", "rungs-at", "delta", "fusion", "initial-rung", "rung-norm"],
  ...["rank", "alpha", "rslora", "lora-layers", "targets", "optimizer-state"],
];

/** Notes the changed settings of a resumed run. Throws `C-USAGE` for a change that would make it another run. */
function compareSettings(report: Report, before: Settings, now: Settings): void {
  const same = (name: string) => JSON.stringify(before[name]) === JSON.stringify(now[name]);
  const changed = Object.keys({ ...before, ...now }).filter((name) => name !== "output" && !same(name));
  const shown = (value: unknown) => (value === undefined ? "its default" : JSON.stringify(value));
  for (const name of changed) {
    const change = `${name} was ${shown(before[name])}, now it is ${shown(now[name])}`;
    if (FIXED.includes(name)) {
      throw new SidenetError(
        "C-USAGE",
        `${change}: that would be another run. Leave --${name} out, or start anew in another --output.`,
      );
    }
    report.note(`resumed with a change: ${change}`);
  }
}

/** Applies the settings of the resumed run, which settings given now override. Throws `C-USAGE`, and as `readRunFile`. */
async function inheritSettings(report: Report, command: Command, layers: Layers): Promise<void> {
  const { resume, overwrite, output } = command.opts<InvocationFlags & Partial<TrainingFlags>>();
  if (resume && overwrite) throw new SidenetError("C-USAGE", "--resume and --overwrite exclude each other.");
  if (!resume || output === undefined) return;
  const run = await readRunFile(output);
  if (run === null) {
    const { model, data } = command.opts<Partial<TrainingFlags>>();
    if (model !== undefined && data !== undefined)
      report.note(`${output} holds no run yet: starting a new one`);
    else throw new SidenetError("C-USAGE", `${output} holds no run to resume. Check --output.`);
    return;
  }
  // Moments stay as "auto" had them then, whatever the weights are now.
  const { "optimizer-state": moments = "auto" } = run.defaults;
  const earlier = { ...run.settings, "optimizer-state": moments };
  const known = Object.entries(earlier).filter(([, value]) => value !== null);
  const before = checkSettings(command, Object.fromEntries(known), `the run in ${output}`);
  applySettings(command, before, ...layers);
  if (command.getOptionValue("optimizerState") === "auto") command.setOptionValue("optimizerState", moments);
  compareSettings(report, earlier, currentSettings(command));
}

async function train(
  report: Report,
  options: TrainingFlags & InvocationFlags,
  command: Command,
): Promise<Outcome> {
  const { resume = false, overwrite = false, memoryTimeline = null, output } = options;
  refuseOtherMethods(command, [options.method]);
  const run = {
    ...runOptions(options),
    memoryTimeline,
    existing: resume ? "resume" : overwrite ? "overwrite" : "refuse",
    settings: currentSettings(command),
  } as const;
  using stop = stopOnSignals(report, "stopping before the next step; a checkpoint will be saved");
  let failed = false;
  try {
    return await withDevice(options, report, async (device) => {
      const shown = { ...run, ...stepSettings(options, device) };
      const summary = await showRun(device, report, shown, stop.signal, () => {
        failed = true;
      });
      const page = await writeReport(output);
      report.print(describeSummary(summary));
      report.print(`report: ${page}`);
      return { json: summary, exitCode: summary.stop_reason === "signal" ? stop.exitCode() : EXIT.ok };
    });
  } catch (error) {
    if (failed) await reportFailedRun(report, output);
    if (!(error instanceof SidenetError) || error.code !== "L-STOPPED") throw error;
    report.error(error.message);
    return { json: { stopped: error.code }, exitCode: stop.exitCode() };
  }
}

/** Writes the report of a failed run, if the failure does not prevent that. */
async function reportFailedRun(report: Report, folder: string): Promise<void> {
  try {
    report.note(`report of the run so far: ${await writeReport(folder)}`);
  } catch (error) {
    report.note(`the report could not be written: ${error instanceof Error ? error.message : String(error)}`);
  }
}
