/** Files of benchmarks: the report as JSON, and as a page that needs nothing else. */
import { readFile } from "node:fs/promises";
import { SidenetError } from "@sidenet/tensor";
import { z } from "zod";
import type { ComparedRow } from "../bench/compare-reports.ts";
import type { BenchReport, BenchRow } from "../bench/suite.ts";
import { fileError } from "./file-source.ts";
import { readJsonFile } from "./json-file.ts";
import { ASSETS, escapeHtml } from "./report.ts";

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
  const parsed = schema.safeParse(await readJsonFile(path));
  if (parsed.success) return parsed.data;
  const why = z.prettifyError(parsed.error);
  throw new SidenetError("L-BENCH", `${path} is not what bench --output or --json writes: ${why}`);
}

/** The text of a WGSL file. Throws `L-FILE-MISSING` or `L-FILE`. */
export async function readKernelText(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    throw fileError(path, cause);
  }
}

const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;
const time = (ms: number): string => `${ms.toPrecision(3)} ms`;

function bar({ name, shareOfCeiling, limit, gflops, gigabytesPerSecond }: BenchRow): string {
  const colour = limit === "copy" ? "var(--c0)" : "var(--c1)";
  const width = (100 * Math.min(1, shareOfCeiling)).toFixed(1);
  const rate = limit === "copy" ? `${gigabytesPerSecond.toFixed(1)} GB/s` : `${gflops.toFixed(1)} GFLOP/s`;
  return (
    `<span class="name">${escapeHtml(name)}</span>` +
    `<span class="track"><i style="width:${width}%;background:${colour}"></i></span>` +
    `<span class="value">${rate}, ${percent(shareOfCeiling)}</span>`
  );
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[], tag: string) =>
    `<tr>${cells.map((cell) => `<${tag}>${escapeHtml(cell)}</${tag}>`).join("")}</tr>`;
  return `<div class="scroll"><table>${line(head, "th")}${rows.map((row) => line(row, "td")).join("\n")}</table></div>`;
}

const section = (title: string, body: string): string => `<section><h2>${title}</h2>${body}</section>`;

const key =
  '<p class="key"><span><i style="background:var(--c0)"></i>limited by bytes</span>' +
  '<span><i style="background:var(--c1)"></i>limited by operations</span></p>';

/** The page of a run, with what an earlier one took where there is a comparison. Throws `L-FILE`. */
export async function renderBenchPage(
  report: BenchReport,
  comparison: readonly ComparedRow[] = [],
): Promise<string> {
  const { device, date, ceilings, results, failures } = report;
  const style = await readFile(new URL("report.css", ASSETS), "utf8");
  const parts = [
    section("Share of the ceiling", `<div class="bars">${results.map(bar).join("\n")}</div>${key}`),
  ];
  if (comparison.length > 0) {
    const cell = (ms: number | null) => (ms === null ? "-" : time(ms));
    const rows = comparison.map(({ name, beforeMs, afterMs, ratio, verdict }) => {
      return [name, cell(beforeMs), cell(afterMs), ratio?.toFixed(2) ?? "-", verdict];
    });
    parts.push(section("Against the earlier run", table(["", "before", "now", "ratio", ""], rows)));
  }
  const times = results.map(({ name, gpuMs, wall, dispatches }) => [
    name,
    gpuMs === null ? "-" : time(gpuMs),
    ...[time(wall.minMs), time(wall.medianMs), percent(wall.spread), `${dispatches}`],
  ]);
  parts.push(
    section("Times of a call", table(["", "GPU", "least", "median", "spread", "dispatches"], times)),
  );
  if (failures.length > 0) {
    const rows = failures.map(({ name, error }) => [name, error]);
    parts.push(section("Not timed", table(["", "why"], rows)));
  }
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Benchmarks · sidenet</title>
<style>${style}</style>
</head>
<body>
<main>
<h1>Benchmarks</h1>
<p class="quiet">${escapeHtml(device)}, ${escapeHtml(date)}. Ceilings: copy ${ceilings.copyGigabytesPerSecond.toFixed(1)} GB/s,
multiply-add ${ceilings.multiplyAddGflops.toFixed(0)} GFLOP/s (${escapeHtml(ceilings.multiplyAddBy)}).</p>
<div class="grid">
${parts.join("\n")}
</div>
</main>
</body>
</html>
`;
}
