/** `sidenet compare` with data: one method after the other is trained as `sidenet train` does it. */

import { join } from "node:path";
import { CATEGORIES, type Device, SidenetError } from "@sidenet/tensor";
import { Command } from "commander";
import { deviceName } from "../device-name.ts";
import { isStream } from "../node/atomic-write.ts";
import { openModelConfig } from "../node/open-model.ts";
import type { TrainSummary } from "../node/train-run.ts";
import { withDevice } from "./device.ts";
import { stepSettings, takesFlag } from "./method-options.ts";
import { EXIT, type Outcome } from "./session.ts";
import { currentSettings, type Settings } from "./settings.ts";
import { stopOnSignals } from "./signals.ts";
import { formatBytes, formatCount, formatTable } from "./table.ts";
import type { Report } from "./terminal.ts";
import { addTrainSettings, runOptions, type TrainingFlags } from "./training-options.ts";
import { showRun } from "./training-run.ts";
import { type MethodChoice, usableVariants, type Variant, variantFlags } from "./variants.ts";

/** The flags of the runs, but for what each method has for itself. */
export interface CompareFlags extends Omit<TrainingFlags, "method"> {
  readonly overwrite: boolean;
}

/** A method that could not be trained to the end. */
interface FailedRun {
  readonly method: string;
  readonly error: { readonly code: string; readonly message: string };
}

type Result = TrainSummary | FailedRun;

/** Errors that a method has for itself: the others may do better. */
const OF_ONE_METHOD = ["T-OUT-OF-MEMORY", "L-DIVERGED"];

export async function compareRuns(
  report: Report,
  flags: CompareFlags,
  methods: MethodChoice,
): Promise<Outcome & { readonly text: string }> {
  const results: Result[] = [];
  const runs = methods.variants.map((variant) => runOptions(flagsOf(variant, flags))); // reports mistakes before a device is opened
  if (runs.length > 1) await refusePipes(runs[0]);
  using stop = stopOnSignals(
    report,
    "stopping before the next step, with a checkpoint; the results of finished methods are kept",
  );
  const device = await withDevice(flags, report, async (device) => {
    // What does not fit the model is reported before hours are spent.
    const variants = usableVariants(report, methods, await openModelConfig(flags.model), flags, device);
    for (const variant of variants) {
      report.note(`\n${variant.name}`);
      const result = await runVariant(device, report, flags, variant, stop.signal).catch((error) => {
        // A failure of the first method that is not its own would be that of all; later, earlier results deserve their table.
        if (results.length === 0 && !isOfOneMethod(error)) throw error;
        return failedRun(report, variant, error);
      });
      results.push(result);
      if (stop.signal.aborted || ("error" in result && !OF_ONE_METHOD.includes(result.error.code))) break;
    }
    return deviceName(device);
  });
  const { model, steps, batchSize: batch_size, gradientAccumulation: gradient_accumulation, seed } = flags;
  const failed = results.some((result) => "error" in result);
  return {
    text: runTable(results),
    json: { model, planned: false, device, steps, batch_size, gradient_accumulation, seed, results },
    exitCode: stop.signal.aborted ? stop.exitCode() : failed ? EXIT.failed : EXIT.ok,
  };
}

/** Throws `C-USAGE` for a file that only the first method could read. */
async function refusePipes(options: ReturnType<typeof runOptions>): Promise<void> {
  const { data, evalData = [], prefix, chatTemplate } = options;
  for (const file of [...data, ...evalData, prefix, chatTemplate]) {
    const path = typeof file === "object" ? file?.path : file;
    if (path !== undefined && (await isStream(path)))
      throw new SidenetError(
        "C-USAGE",
        `${path} is a pipe, and each method reads it. Save it to a file first.`,
      );
  }
}

const isOfOneMethod = (error: unknown): boolean =>
  error instanceof SidenetError && [...OF_ONE_METHOD, "L-STOPPED"].includes(error.code);

/** Reports the error at once. Rethrows errors that are not the library's. */
function failedRun(report: Report, { name }: Variant, error: unknown): FailedRun {
  if (!(error instanceof SidenetError)) throw error;
  report.error(`${name}: ${error.message}`);
  return { method: name, error: { code: error.code, message: error.text } };
}

/** What `sidenet train` would be given for the method alone. */
const flagsOf = (variant: Variant, flags: CompareFlags): TrainingFlags => ({
  ...variantFlags(variant, flags),
  output: join(flags.output, variant.name),
});

/** The settings of that `train`, without sizes of other methods, which it would refuse. */
function settingsOfTrain(flags: TrainingFlags): Settings {
  const train = addTrainSettings(new Command());
  for (const [flag, value] of Object.entries(flags))
    if (takesFlag(flags.method, flag)) train.setOptionValue(flag, value);
  return currentSettings(train);
}

/** The run that `sidenet train` does with the same options: it can go on with it. */
async function runVariant(
  device: Device,
  report: Report,
  all: CompareFlags,
  variant: Variant,
  signal: AbortSignal,
): Promise<TrainSummary> {
  const flags = flagsOf(variant, all);
  const run = {
    ...runOptions(flags),
    ...stepSettings(flags, device),
    existing: all.overwrite ? "overwrite" : "refuse",
    settings: settingsOfTrain(flags),
  } as const;
  const summary = await showRun(device, report, run, signal);
  if (summary.eval_loss !== null)
    report.note(`${variant.name}: held-out loss ${lossText(summary.eval_loss)}`);
  return { ...summary, method: variant.name };
}

/** A step whose loss was not finite, and an evaluation that there was none of, have no number. */
const lossText = (loss: number | null | undefined): string => loss?.toFixed(4) ?? "-";

function runTable(results: readonly Result[]): string {
  const head = ["method", "loss", "eval loss", "tokens/s", "s", "peak", ...CATEGORIES, "trained"];
  const rows = results.map((run) =>
    "error" in run
      ? [run.method, run.error.code, ...head.slice(2).map(() => "-")]
      : [
          run.method,
          lossText(run.loss.at(-1)),
          lossText(run.eval_loss),
          run.tokens_per_second.toFixed(0),
          run.seconds.toFixed(0),
          formatBytes(run.peak_bytes),
          ...CATEGORIES.map((category) => formatBytes(run.peak_bytes_by_category[category])),
          formatCount(run.trainable_parameters),
        ],
  );
  return formatTable(head, rows);
}
