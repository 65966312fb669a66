/** What is shown while files come from the hub, and while a model is read. */
import type { HubOptions } from "../node/hub.ts";
import { formatBytes } from "./table.ts";
import type { Report } from "./terminal.ts";

const WIDTH = 24;

/** "model.safetensors [=====>      ] 45 %, 121 of 269 MB, 12.3 MB/s, 12 s left"; seconds since it began. */
export function progressBar(name: string, doneBytes: number, totalBytes: number, seconds: number): string {
  const share = totalBytes > 0 ? Math.min(doneBytes / totalBytes, 1) : 1;
  const filled = Math.round(share * WIDTH);
  const bar = `${"=".repeat(filled)}${filled < WIDTH ? ">" : ""}`.slice(0, WIDTH).padEnd(WIDTH);
  const speed = seconds > 0.5 ? doneBytes / seconds : 0;
  const pace =
    speed > 0 ? `, ${formatBytes(speed)}/s, ${Math.ceil((totalBytes - doneBytes) / speed)} s left` : "";
  return `${name} [${bar}] ${Math.floor(100 * share)} %, ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}${pace}`;
}

/** Time between two lines: a terminal is slower than a network. */
const INTERVAL_MS = 100;

/** Shows downloads from the hub as they go: a bar for a person, a line per file for a log. */
export function hubOptions(report: Report): Pick<HubOptions, "onProgress"> {
  let current = { file: "", started: 0, shown: 0 };
  return {
    onProgress(file, done, total) {
      const now = performance.now();
      if (file !== current.file) {
        current = { file, started: now, shown: 0 };
        report.note(`fetching ${file} (${formatBytes(total)})`);
      }
      if (now - current.shown < INTERVAL_MS && done < total) return;
      current.shown = now;
      const seconds = (now - current.started) / 1000;
      report.progress(progressBar(file, done, total, seconds));
    },
  };
}

/** Shows how much of a model is read. */
export const showLoading =
  (report: Report) =>
  (doneBytes: number, totalBytes: number): void =>
    report.progress(`reading the model: ${Math.round((100 * doneBytes) / totalBytes)} %`);
