/** The text that `train` prints. */
import { type BytesByCategory, CATEGORIES } from "@sidenet/tensor";
import { inSteps } from "../node/run/resume-hint.ts";
import type {
  EvalMetrics,
  RunReady,
  RunStart,
  Sample,
  StepMetrics,
  TrainSummary,
} from "../node/train-run.ts";
import { isSameLoss } from "../training/evaluate-loss.ts";
import { formatTable } from "./table.ts";

const indent = (text: string): string => text.replace(/^/gm, "  | ");
const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
const millions = (count: number): string => `${(count / 1e6).toFixed(2)} M`;
const number = (value: number | null): string => (value === null ? "not finite" : value.toFixed(4));

export const describeReady = (ready: RunReady): string =>
  `model: ${millions(ready.backboneParameters)} parameters; trained: ${millions(ready.trainableParameters)}; ` +
  `effective depth ${ready.effectiveDepth}\n` +
  `data: ${ready.trainRecords} training records, ${ready.heldOutRecords || "none"} held out` +
  (ready.prefixTokens > 0 ? `, each after a prefix of ${ready.prefixTokens} tokens` : "");

/** `steps` is how many are asked for. Empty for a new run without held-out records. */
export function describeStart(start: RunStart, steps: number): string {
  const { frozenEvalLoss: frozen, initialEvalLoss: initial, resumedFrom } = start;
  return [
    ...(frozen === null || initial === null ? [] : [describeUntrained(frozen, initial)]),
    ...(resumedFrom === null ? [] : [resumption(resumedFrom, steps)]),
  ].join("\n");
}

function describeUntrained(frozen: number, initial: number): string {
  const same =
    frozen === initial
      ? "equal, as expected"
      : isSameLoss(frozen, initial)
        ? "equal but for rounding, as expected"
        : "DIFFERENT, which is a bug in sidenet";
  return `held-out loss: frozen model ${frozen.toFixed(4)}, with the untrained adapter ${initial.toFixed(4)} (${same})`;
}

const resumption = (done: number, steps: number): string =>
  `resumed after ${inSteps(done)}${done < steps ? "" : `: all ${steps} are done. To train longer, give for example --steps ${2 * done}`}`;

export const describeSample = (when: string, { prompt, text }: Sample): string =>
  `\n${when} training:\n${indent(`${prompt}▸${text}`)}\n`;

export function describeEvaluation({ step, eval_loss, sample }: EvalMetrics): string {
  const text = sample ? `\n${indent(`${sample.prompt}▸${sample.text}`)}` : "";
  return `after ${inSteps(step)}: held-out loss ${eval_loss.toFixed(4)}${text}`;
}

/** "weights 257 + saved 35 + ... = 353 MiB": the parts of the peak so far, the largest first. */
function describePeak(bytes: BytesByCategory, total: number): string {
  const rounded = (count: number): string => (count / 2 ** 20).toFixed(0);
  const parts = CATEGORIES.filter((category) => bytes[category] >= 2 ** 19).sort(
    (a, b) => bytes[b] - bytes[a],
  );
  return `${parts.map((category) => `${category} ${rounded(bytes[category])}`).join(" + ")} = ${rounded(total)} MiB`;
}

/** The line of one step, for logs. */
export function describeStep(metrics: StepMetrics, steps: number): string {
  return (
    `step ${String(metrics.step + 1).padStart(String(steps).length)}/${steps}  loss ${number(metrics.loss)}  ` +
    `${metrics.tokens_per_second.toFixed(0)} tokens/s  ` +
    `peak ${describePeak(metrics.peak_bytes_by_category, metrics.peak_bytes)}`
  );
}

/** The metrics beside a progress bar. */
export const describeProgress = (metrics: StepMetrics): string =>
  `loss ${number(metrics.loss)}  ${metrics.tokens_per_second.toFixed(0)} tokens/s  peak ${mib(metrics.peak_bytes)}`;

function memoryTable(bytes: BytesByCategory, total: number): string {
  const rows = CATEGORIES.filter((category) => bytes[category] > 0).map((category) => [
    category,
    mib(bytes[category]),
    `${((100 * bytes[category]) / total).toFixed(1)} %`,
  ]);
  return formatTable(["peak memory", "", ""], [...rows, ["total", mib(total), ""]]);
}

const ENDS: Readonly<Record<TrainSummary["stop_reason"], string>> = {
  done: "",
  signal: " (stopped early; continue with --resume)",
  patience: " (stopped early by --patience)",
};

export function describeSummary(summary: TrainSummary): string {
  const { frozen_eval_loss: before, eval_loss: after, adapter_step: from, steps } = summary;
  const seconds = Math.max(summary.seconds, 1e-9);
  return [
    "",
    memoryTable(summary.peak_bytes_by_category, summary.peak_bytes),
    "",
    ...(before === null || after === null
      ? []
      : [`held-out loss: ${before.toFixed(4)} (frozen model) → ${after.toFixed(4)} (trained)`]),
    `${inSteps(steps)}${ENDS[summary.stop_reason]}, ${summary.tokens} tokens in ` +
      `${summary.seconds.toFixed(0)} s: ${summary.tokens_per_second.toFixed(0)} tokens/s, ` +
      `${(summary.flops / seconds / 1e9).toFixed(1)} GFLOP/s`,
    `adapter: ${summary.adapter}${from === steps ? "" : ` (the best one, after ${inSteps(from)})`}`,
  ].join("\n");
}
