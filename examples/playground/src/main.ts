/** The page: it asks the worker, and draws what the worker tells. */
import { LEARNING_RATES } from "@sidenet/ladder";
import config from "@sidenet/ladder/models/tiny-books/config.json?url";
import weights from "@sidenet/ladder/models/tiny-books/model.safetensors?url";
import tokenizer from "@sidenet/ladder/models/tiny-books/tokenizer.json?url";
import tokenizerConfig from "@sidenet/ladder/models/tiny-books/tokenizer_config.json?url";
import type { BrowserDeviceName, BytesByCategory } from "@sidenet/tensor";
import { byId, bytes, count, duration, loss } from "./dom.ts";
import { type Curve, LossPlot } from "./loss-plot.ts";
import { type MemoryBar, showMemory, showMemoryKey } from "./memory-view.ts";
import type { DeviceFacts, ModelUrls, PlaygroundMethod, Report, Request, When } from "./protocol.ts";
import { addRun } from "./runs-table.ts";
import "./style.css";
import { Sentence, TextChoice } from "./text-choice.ts";
import TrainingWorker from "./worker.ts?worker&inline";

/** The bundled model; addresses are whole, since a worker that is part of the page has none of its own. */
const MODEL: ModelUrls = {
  name: "tiny-books",
  config: absolute(config),
  weights: absolute(weights),
  tokenizer: absolute(tokenizer),
  tokenizerConfig: absolute(tokenizerConfig),
};

const METHOD_NAMES: Readonly<Record<PlaygroundMethod, string>> = { ladder: "Ladder", qlora: "QLoRA" };
/** Colours of the curves, by method. */
const COLOURS: Readonly<Record<PlaygroundMethod, string>> = { ladder: "c0", qlora: "c1" };
/** The library's, times what a model this small and a run this short can take. */
const RATES: Readonly<Record<PlaygroundMethod, number>> = {
  ladder: 2 * LEARNING_RATES.ladder,
  qlora: 4 * LEARNING_RATES.qlora,
};
/** Curves of earlier runs that are drawn behind the present one. */
const MOST_EARLIER = 3;

interface Run {
  readonly title: string;
  readonly curve: Curve;
  initialLoss: number;
  peak: BytesByCategory | null;
}

function absolute(url: string): string {
  return new URL(url, document.baseURI).href;
}

const plot = new LossPlot(byId("loss"));
const runs: Run[] = [];
let live: BytesByCategory | null = null;
let worker = startWorker();
/** What the worker is at. */
let task: "open" | "train" | "write" | null = null;

const field = (id: string): HTMLInputElement => byId<HTMLInputElement>(id);
const method = (): PlaygroundMethod =>
  document.querySelector<HTMLInputElement>('input[name="method"]:checked')!.value as PlaygroundMethod;

const sentence = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);

function showProblem(text: string | null): void {
  byId("problem").hidden = text === null;
  byId("problem").textContent = text;
}

function showStatus(text: string): void {
  byId("status").textContent = text;
}

function setTask(next: typeof task): void {
  task = next;
  for (const id of ["train", "write", "device-choice"]) field(id).disabled = next !== null;
  field("stop").disabled = next === null || next === "open";
  document.body.dataset.task = next ?? "idle";
}

function ask(next: NonNullable<typeof task>, request: Request): void {
  showProblem(null);
  setTask(next);
  worker.postMessage(request);
}

function startWorker(): Worker {
  const started = new TrainingWorker();
  started.onmessage = ({ data }: MessageEvent<Report>) => take(data);
  started.onerror = ({ message }) => {
    started.terminate();
    worker = startWorker();
    openDevice();
    showProblem(`The worker ended (${message || "it did not load"}); another one was started.`);
  };
  return started;
}

function openDevice(): void {
  const device = byId<HTMLSelectElement>("device-choice").value as BrowserDeviceName;
  ask("open", { type: "open", device, model: MODEL });
}

const KINDS = { webgpu: "WebGPU", wasm: "WebAssembly", cpu: "CPU reference", meta: "meta" } as const;

function showDevice({ kind, label, reason }: DeviceFacts): void {
  const chip = byId("device");
  chip.dataset.kind = kind;
  chip.querySelector("span")!.textContent = kind === "wasm" ? label : `${KINDS[kind]}: ${label}`;
  const isFallback = kind !== "webgpu" && reason !== "asked for";
  const why = sentence(reason.replace(/\.$/, ""));
  byId("notice").hidden = !isFallback;
  byId("notice").textContent = `${why}, so training runs on the CPU, in a worker: ${label}.`;
}

/** Peaks of the runs, and what is live now. */
function drawMemory(): void {
  const bars: MemoryBar[] = runs
    .slice(-MOST_EARLIER - 1)
    .flatMap(({ title, peak }) => (peak ? [{ label: `${title}, peak`, live: peak }] : []));
  if (live) bars.push({ label: "now", live });
  showMemory(bars);
  showMemoryKey(runs.at(-1)?.peak ?? live);
}

function showProgress(done: number, steps: number): void {
  const bar = byId("progress");
  bar.setAttribute("aria-valuemax", String(steps));
  bar.setAttribute("aria-valuenow", String(done));
  bar.querySelector("i")!.style.width = `${(100 * done) / steps}%`;
}

function begin(title: string, steps: number): void {
  const name = METHOD_NAMES[method()];
  const curve: Curve = { label: name, colour: COLOURS[method()], steps, losses: [], evaluations: [] };
  runs.push({ title, curve, initialLoss: Number.NaN, peak: null });
  byId("loss-empty").hidden = true;
  for (const id of ["tile-loss", "tile-peak", "tile-speed", "tile-parameters"]) byId(id).textContent = "-";
  showProgress(0, steps);
  plot.show(runs.slice(-MOST_EARLIER - 1).map((run) => run.curve));
  drawMemory();
}

function takeStep(run: Run, { metrics, live: now }: Extract<Report, { type: "step" }>): void {
  const { curve } = run;
  const done = metrics.step + 1;
  curve.losses.push(metrics.loss ?? Number.NaN);
  run.peak = metrics.peak_bytes_by_category;
  live = now;
  plot.update();
  drawMemory();
  showProgress(done, curve.steps);
  byId("tile-peak").textContent = bytes(metrics.peak_bytes);
  byId("tile-speed").textContent = metrics.tokens_per_second.toFixed(0);
  const left = duration((curve.steps - done) * metrics.seconds);
  showStatus(`Step ${done} of ${curve.steps}, loss ${loss(metrics.loss ?? Number.NaN)}, ${left} left`);
}

function takeEvaluation(run: Run, step: number, value: number): void {
  run.curve.evaluations.push([step, value]);
  byId("tile-loss").textContent = step === 0 ? loss(value) : `${loss(run.initialLoss)} → ${loss(value)}`;
  plot.update();
}

function clearText(when: When, prompt: string): void {
  const start = document.createElement("b");
  start.textContent = prompt;
  byId(when).replaceChildren(start);
}

function take(report: Report): void {
  const run = runs.at(-1);
  switch (report.type) {
    case "busy":
      return showStatus(report.what);
    case "ready":
      showDevice(report.device);
      byId("model-line").textContent =
        `tiny-books: a model of ${count(report.parameters)} parameters that has read 21 children's books.`;
      return;
    case "started":
      run!.initialLoss = report.facts.initialLoss;
      byId("tile-parameters").textContent = count(report.facts.trainableParameters);
      return takeEvaluation(run!, 0, report.facts.initialLoss);
    case "step":
      return takeStep(run!, report);
    case "evaluation":
      return takeEvaluation(run!, report.step, report.loss);
    case "clear-text":
      return clearText(report.when, report.prompt);
    case "text":
      return byId(report.when).append(report.text);
    case "finished": {
      const { steps, finalLoss } = report.result;
      if (run!.curve.evaluations.at(-1)?.[0] !== steps) takeEvaluation(run!, steps, finalLoss);
      return addRun({ title: run!.title, initialLoss: run!.initialLoss, result: report.result });
    }
    case "note":
      return showStatus(sentence(report.text));
    case "idle":
      showStatus(task === "train" ? "Done" : "Ready");
      return setTask(null);
    case "failed":
      return takeFailure(report.message, report.reopen);
  }
}

function takeFailure(message: string, reopen: boolean): void {
  showStatus("Failed");
  const wasOpening = task === "open";
  setTask(null);
  if (reopen) openDevice();
  else if (wasOpening) field("train").disabled = true;
  showProblem(message);
}

const choice = new TextChoice((prompt) => {
  byId<HTMLTextAreaElement>("prompt").value = prompt;
}, showProblem);

async function train(): Promise<void> {
  const [steps, learningRate] = [field("steps").valueAsNumber, field("rate").valueAsNumber];
  const prompt = byId<HTMLTextAreaElement>("prompt").value;
  try {
    const text = await choice.text();
    const settings = { method: method(), steps, learningRate, prompt };
    begin(`${METHOD_NAMES[method()]}, ${choice.title}`, steps);
    clearText("after", "");
    ask("train", { type: "train", settings, text });
  } catch (error) {
    if (!(error instanceof Sentence)) throw error;
    showProblem(error.message);
  }
}

byId("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  if (task === null) void train();
});
byId("writer").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = byId<HTMLTextAreaElement>("prompt").value;
  if (task === null) ask("write", { type: "generate", prompt });
});
byId("stop").addEventListener("click", () => {
  field("stop").disabled = true;
  showStatus("Stopping");
  worker.postMessage({ type: "stop" } satisfies Request);
});
byId("device-choice").addEventListener("change", openDevice);
byId("settings").addEventListener("change", ({ target }) => {
  if ((target as HTMLInputElement).name === "method") field("rate").value = String(RATES[method()]);
});
field("rate").value = String(RATES[method()]);
showMemoryKey(null);
openDevice();
