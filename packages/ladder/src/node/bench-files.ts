/** Benchmark files: the report as JSON and as a self-contained page. */
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import type { ComparedRow } from "../bench/compare-reports.ts";
import type { BenchReport, BenchRow } from "../bench/suite.ts";
import { checked } from "../external-input.ts";
import { readText } from "./file-source.ts";
import { readJsonFile } from "./json-file.ts";
import { ASSETS, escapeHtml, htmlPage } from "./report.ts";

const schema = z.looseObject({
  device: z.string(),
  date: z.string(),
  results: z.array(
    z.looseObject({ name: z.string(), wall: z.looseObject({ minMs: z.number().positive() }) }),
  ),
  failures: z.array(z.looseObject({ name: z.string() })),
});

/** An earlier run, as far as comparisons need it. */
export type Baseline = z.infer<typeof schema>;

/** Reads what `bench` wrote. Throws `L-FILE-MISSING`, `L-FILE`, `L-JSON`, or `L-BENCH` when it is something else. */
export async function readBaseline(path: string): Promise<Baseline> {
  const refuse = (why: string) =>
    new SidenetError("L-BENCH", `${path} is not what bench --output or --json writes: ${why}`);
  return checked(schema, await readJsonFile(path), refuse);
}

/** Three digits, without an exponent. */
const digits = (n: number): string => (n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toPrecision(2));
const percent = (share: number): string =>
  `${share > 0.095 || share === 0 ? (100 * share).toFixed(0) : digits(100 * share)} %`;
const time = (ms: number): string =>
  ms >= 1000 ? `${digits(ms / 1000)} s` : ms >= 0.1 ? `${digits(ms)} ms` : `${digits(1000 * ms)} µs`;

function bar({ name, shareOfCeiling, limit, gflops, gigabytesPerSecond }: BenchRow): string {
  const colour = limit === "copy" ? "var(--c0)" : "var(--c1)";
  const width = (100 * Math.min(1, shareOfCeiling)).toFixed(1);
  const rate = limit === "copy" ? `${digits(gigabytesPerSecond)} GB/s` : `${digits(gflops)} GFLOP/s`;
  return (
    `<span class="name">${escapeHtml(name)}</span>` +
    `<span class="track"><i style="width:${width}%;background:${colour}"></i></span>` +
    `<span class="value">${rate}, ${percent(shareOfCeiling)}</span>`
  );
}

const SCALE = `<span></span><span class="scale">${["0", "25", "50", "75", "100 %"].map((text) => `<span>${text}</span>`).join("")}</span><span></span>`;

const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  `<div class="scroll"><table>${tableRow(head, "th")}${rows.map((row) => tableRow(row, "td")).join("\n")}</table></div>`;

/** Verdicts by name, which the style colours. */
const tableRow = (cells: readonly string[], tag: string): string =>
  `<tr class="${escapeHtml(cells.at(-1) ?? "")}">${cells.map((cell) => `<${tag}>${escapeHtml(cell)}</${tag}>`).join("")}</tr>`;

/** In which order a reader wants them. */
const VERDICTS: readonly ComparedRow["verdict"][] = ["slower", "failed", "faster", "same", "new"];

/** Rows of both runs, those that changed first; those that only the earlier one has are counted. */
function comparisonSection(comparison: readonly ComparedRow[]): string {
  const cell = (ms: number | null) => (ms === null ? "-" : time(ms));
  const rows = VERDICTS.flatMap((wanted) => comparison.filter(({ verdict }) => verdict === wanted)).map(
    ({ name, beforeMs, afterMs, ratio, verdict }) => {
      return [name, cell(beforeMs), cell(afterMs), ratio?.toFixed(2) ?? "-", verdict];
    },
  );
  const missing = comparison.length - rows.length;
  const note =
    missing > 0 ? `<p class="quiet">${missing} rows of the earlier run were left out of this one.</p>` : "";
  return section("Against the earlier run", note + table(["", "before", "now", "ratio", ""], rows));
}

function timesSection(results: readonly BenchRow[]): string {
  const onGpu = results.some(({ dispatches }) => dispatches > 0); // elsewhere both columns say nothing
  const rows = results.map(({ name, gpuMs, wall, dispatches }) => [
    name,
    ...(onGpu ? [gpuMs === null ? "-" : time(gpuMs)] : []),
    ...[time(wall.minMs), time(wall.medianMs), percent(wall.spread)],
    ...(onGpu ? [`${dispatches}`] : []),
  ]);
  const head = ["", ...(onGpu ? ["GPU"] : []), "least", "median", "spread", ...(onGpu ? ["dispatches"] : [])];
  return section("Times of a call", table(head, rows));
}

const section = (title: string, body: string): string => `<section><h2>${title}</h2>${body}</section>`;

const key =
  '<p class="key"><span><i style="background:var(--c0)"></i>limited by bytes</span>' +
  '<span><i style="background:var(--c1)"></i>limited by operations</span>' +
  "<span>above 100 %: from a cache, or more read than written</span></p>";

/** The page of a run, with what an earlier one took where there is a comparison. Throws `L-FILE`. */
export async function renderBenchPage(
  report: BenchReport,
  comparison: readonly ComparedRow[],
): Promise<string> {
  const { device, date, ceilings, results, failures } = report;
  const style = await readText(new URL("report.css", ASSETS));
  const bars = `<div class="bars shares">${SCALE}${results.map(bar).join("\n")}</div>${key}`;
  const parts = [section("Share of the ceiling", bars)];
  if (comparison.length > 0) parts.push(comparisonSection(comparison));
  parts.push(timesSection(results));
  if (failures.length > 0) {
    const rows = failures.map(({ name, error }) => [name, error]);
    parts.push(section("Not timed", table(["", "why"], rows)));
  }
  const main = `<main>
<h1>Benchmarks</h1>
<p class="quiet">${escapeHtml(device)}, ${escapeHtml(date)}. Ceilings: copy ${ceilings.copyGigabytesPerSecond.toFixed(1)} GB/s,
multiply-add ${ceilings.multiplyAddGflops.toFixed(0)} GFLOP/s (${escapeHtml(ceilings.multiplyAddBy)}).</p>
<div class="grid">
${parts.join("\n")}
</div>
</main>`;
  return htmlPage("Benchmarks", style, main);
}
