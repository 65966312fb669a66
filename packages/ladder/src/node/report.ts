/** The page of a run, or of several side by side: one HTML file that needs nothing else. */
import { createRequire } from "node:module";
import { basename, join, resolve } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import { type EvalMetrics, isEvaluation, type StepMetrics } from "../training/metrics.ts";
import type { StepProfile } from "../training/step-profile.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { readText } from "./file-source.ts";
import { readJsonFileIfExists } from "./json-file.ts";
import { type RunFailure, readFailure } from "./run/failure.ts";
import { readMetrics } from "./run/metrics-log.ts";
import { RUN_FILES, type RunFile, readRunFile } from "./run/run-folder.ts";

/** A run as the page shows it; what is not there yet is null. */
export interface ReportedRun {
  readonly name: string;
  readonly run: RunFile | null;
  /** How it failed, where it did. */
  readonly failure: Pick<RunFailure, "code" | "message"> | null;
  /** As `summary.json` or `results.json` has it. */
  readonly summary: Readonly<Record<string, unknown>> | null;
  readonly steps: readonly StepMetrics[];
  readonly evaluations: readonly EvalMetrics[];
  readonly profile: StepProfile | null;
}

/** What a page of a folder shows. */
export interface ReportData {
  readonly title: string;
  readonly runs: readonly ReportedRun[];
}

/** What `compare` writes beside the folders of its runs. */
export const RESULTS = "results.json";

const resultsSchema = z.looseObject({
  model: z.string(),
  results: z.array(
    z.looseObject({
      method: z.string(),
      error: z.object({ code: z.string(), message: z.string() }).optional(),
    }),
  ),
});

async function readRun(folder: string, name: string): Promise<ReportedRun> {
  const lines = await readMetrics(join(folder, RUN_FILES.metrics));
  return {
    name,
    run: await readRunFile(folder),
    failure: await readFailure(folder),
    summary: ((await readJsonFileIfExists(join(folder, RUN_FILES.summary))) ??
      null) as ReportedRun["summary"],
    steps: lines.filter((line): line is StepMetrics => !isEvaluation(line)),
    evaluations: lines.filter(isEvaluation),
    profile: ((await readJsonFileIfExists(join(folder, RUN_FILES.profile))) ?? null) as StepProfile | null,
  };
}

/**
 * What `train` or `compare` wrote to a folder, finished or not. Throws `L-REPORT` where neither did, and `L-FILE`, `L-JSON`
 * or `L-RUN` for files that cannot be read.
 */
export async function readReportData(folder: string): Promise<ReportData> {
  const json = await readJsonFileIfExists(join(folder, RESULTS));
  if (json !== undefined) {
    const refuse = (why: string) =>
      new SidenetError("L-REPORT", `${join(folder, RESULTS)} is not what compare writes: ${why}.`);
    const { model, results } = checked(resultsSchema, json, refuse);
    const runs: ReportedRun[] = [];
    for (const summary of results) {
      const run = await readRun(join(folder, summary.method), summary.method);
      const { error } = summary; // of a method that failed, and has no summary then
      runs.push(error ? { ...run, failure: run.failure ?? error } : { ...run, summary });
    }
    return { title: `${runs.length} methods on ${basename(model)}`, runs };
  }
  const run = await readRun(folder, basename(resolve(folder)));
  if (run.run === null && run.steps.length === 0) {
    throw new SidenetError(
      "L-REPORT",
      `${folder} holds no run: there is neither ${RUN_FILES.run} nor ${RESULTS}. Give the --output of train or compare.`,
    );
  }
  const method = String(run.run?.settings.method ?? run.summary?.method ?? "training");
  return { title: `${method} on ${basename(run.run?.model ?? "a model")}`, runs: [run] };
}

export const ASSETS = new URL("../../assets/", import.meta.url);

/** `live`: the page asks its server for new data as long as it is open. */
export async function renderReport(data: ReportData, live = false): Promise<string> {
  const { resolve: find } = createRequire(import.meta.url);
  const styles = [find("uplot/dist/uPlot.min.css"), new URL("report.css", ASSETS)];
  const scripts = [
    find("uplot/dist/uPlot.iife.min.js"),
    new URL("report-parts.js", ASSETS),
    new URL("report.js", ASSETS),
  ];
  const texts = (files: readonly (string | URL)[]) => Promise.all(files.map(readText));
  const style = (await texts(styles)).join("\n");
  const script = (await texts(scripts)).map((text) => `{\n${text}\n}`).join("\n"); // a block each: names stay its own
  const json = JSON.stringify({ ...data, live }).replaceAll("<", "\\u003c"); // no "</script>" in it
  return htmlPage(
    data.title,
    style,
    `<main id="page"></main>
<script type="application/json" id="data">${json}</script>
<script>${script}</script>`,
  );
}

/** A page that needs nothing else. */
export const htmlPage = (title: string, style: string, body: string): string => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeHtml(title)} · sidenet</title>
<style>${style}</style>
</head>
<body>
${body}
</body>
</html>
`;

export const escapeHtml = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** Writes `report.html` into the folder and returns its path. Throws what reading and writing throw. */
export async function writeReport(folder: string): Promise<string> {
  const path = join(folder, RUN_FILES.report);
  await writeFileAtomic(path, await renderReport(await readReportData(folder)));
  return path;
}
