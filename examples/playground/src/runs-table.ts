/** The table of the runs since the page was loaded, with links to download their adapters. */
import { ADAPTER_FILES } from "@sidenet/ladder";
import { byId, bytes, element, loss } from "./dom.ts";
import type { RunResult } from "./protocol.ts";

interface FinishedRun {
  readonly title: string;
  readonly initialLoss: number;
  readonly result: RunResult;
}

/** A link that saves bytes as a file, without a request. */
function download(name: string, parts: readonly (string | Uint8Array)[], type: string): HTMLAnchorElement {
  const url = URL.createObjectURL(new Blob(parts as BlobPart[], { type }));
  return element("a", { href: url, download: name }, name);
}

export function addRun({ title, initialLoss, result }: FinishedRun): void {
  const { adapter, steps, stopped, seconds, tokens, peakBytes, finalLoss } = result;
  const files = element(
    "td",
    { class: "files" },
    download(ADAPTER_FILES.weights, adapter.weights, "application/octet-stream"),
    download(ADAPTER_FILES.config, [adapter.config], "application/json"),
  );
  const cells = {
    steps: `${steps}${stopped ? ", stopped" : ""}`,
    "held-out loss": `${loss(initialLoss)} → ${loss(finalLoss)}`,
    "peak memory": bytes(peakBytes),
    "tokens/s": seconds > 0 ? (tokens / seconds).toFixed(0) : "-",
  };
  byId("runs").prepend(
    element(
      "tr",
      {},
      element("th", { scope: "row" }, title),
      ...Object.entries(cells).map(([label, cell]) => element("td", { "data-label": label }, cell)),
      files,
    ),
  );
  byId("runs-card").hidden = false;
}
