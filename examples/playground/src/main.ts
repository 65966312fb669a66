/** The page: sends requests to the worker, and shows its messages. */
import "./no-eval.ts";
import { defaultLearningRate, parseModelConfig } from "@sidenet/ladder";
import tinyBooks from "@sidenet/ladder/models/tiny-books/config.json" with { type: "json" };
import config from "@sidenet/ladder/models/tiny-books/config.json?url";
import weights from "@sidenet/ladder/models/tiny-books/model.safetensors?url";
import tokenizer from "@sidenet/ladder/models/tiny-books/tokenizer.json?url";
import tokenizerConfig from "@sidenet/ladder/models/tiny-books/tokenizer_config.json?url";
import type { BrowserDeviceName } from "@sidenet/tensor";
import { byId, count } from "./dom.ts";
import type {
  DeviceFacts,
  ModelUrls,
  Passage,
  PlaygroundMethod,
  Report,
  Request,
  RunSettings,
  When,
} from "./protocol.ts";
import { type BegunRun, RunView } from "./run-view.ts";
import "./style.css";
import "./results.css";
import { Sentence, TextChoice } from "./text-choice.ts";
import TrainingWorker from "./worker.ts?worker&inline";

const absolute = (url: string): string => new URL(url, document.baseURI).href;

/** The bundled model. The URLs are absolute, since a worker from a blob has no base URL. */
const MODEL: ModelUrls = {
  name: "tiny-books",
  files: {
    "config.json": absolute(config),
    "model.safetensors": absolute(weights),
    "tokenizer.json": absolute(tokenizer),
    "tokenizer_config.json": absolute(tokenizerConfig),
  },
};

const DEVICES = { webgpu: "WebGPU: ", wasm: "", cpu: "", meta: "" } as const;

/** What the worker is doing. */
type Task = "open" | "train" | "write";

const input = (id: string): HTMLInputElement => byId<HTMLInputElement>(id);
/** Capitalizes the first letter, unless the text begins with the name of a file. */
const sentence = (text: string): string =>
  text.replace(/^[a-z]+(?=[\s,'])/, (word) => word.charAt(0).toUpperCase() + word.slice(1));
const method = (): PlaygroundMethod =>
  document.querySelector<HTMLInputElement>('input[name="method"]:checked')!.value as PlaygroundMethod;

function showProblem(text: string | null): void {
  byId("problem").hidden = text === null;
  byId("problem").textContent = text;
}

function showStatus(text: string): void {
  byId("status").textContent = text;
}

function showDevice({ kind, label, reason }: DeviceFacts): void {
  const chip = byId("device");
  chip.dataset.kind = kind;
  chip.querySelector("span")!.textContent = DEVICES[kind] + label;
  const isFallback = kind !== "webgpu" && reason !== "asked for";
  byId("notice").hidden = !isFallback;
  byId("notice").textContent =
    `${sentence(reason.replace(/\.$/, ""))}, so training runs on the CPU, in a worker: ${label}.`;
}

/** Shows the prompt in place of the generated text. */
function clearText(when: When, prompt: string): void {
  const start = document.createElement("b");
  start.textContent = prompt;
  byId(when).replaceChildren(start);
}

const view = new RunView();
const choice = new TextChoice((prompt) => {
  byId<HTMLTextAreaElement>("prompt").value = prompt;
}, showProblem);
let task: Task | null = null;
/** The last requested run. */
let started: BegunRun | null = null;
const worker = startWorker();

function startWorker(): Worker {
  const started = new TrainingWorker();
  started.onmessage = ({ data }: MessageEvent<Report>) => take(data);
  started.onerror = ({ message }) => {
    started.terminate();
    setTask(null);
    input("train").disabled = true;
    showStatus("Failed");
    showProblem(`The worker ended: ${message || "its script did not load"}. Load the page again.`);
  };
  return started;
}

function setTask(next: Task | null): void {
  task = next;
  for (const id of ["train", "write", "device-choice"]) input(id).disabled = next !== null;
  input("stop").disabled = next === null || next === "open";
  document.body.dataset.task = next ?? "idle";
}

let asked = 0;

function ask(next: Task, request: Request): void {
  showProblem(null);
  document.body.dataset.asked = String(++asked);
  setTask(next);
  worker.postMessage(request);
}

function openDevice(): void {
  const device = byId<HTMLSelectElement>("device-choice").value as BrowserDeviceName;
  ask("open", { type: "open", device, model: MODEL });
}

/** Shows that there is no device, so nothing can be trained. */
function takeFailure({ message, reopen }: Extract<Report, { type: "failed" }>): void {
  const isWithout = task === "open";
  showStatus("Failed");
  setTask(null);
  if (reopen) openDevice();
  if (isWithout) for (const id of ["train", "write"]) input(id).disabled = true;
  showProblem(sentence(message));
}

function take(report: Report): void {
  switch (report.type) {
    case "busy":
    case "note":
      showStatus(sentence(report.type === "busy" ? report.what : report.text));
      break;
    case "ready":
      showDevice(report.device);
      byId("model-line").textContent =
        `The model is tiny-books: ${count(report.parameters)} parameters that have read 21 children's books.`;
      break;
    case "started":
      view.begin(started!, report.facts);
      break;
    case "step":
      showStatus(view.step(report));
      break;
    case "evaluation":
      view.evaluate(report.step, report.loss);
      break;
    case "clear-text":
      clearText(report.when, report.prompt);
      break;
    case "text":
      byId(report.when).append(report.text);
      break;
    case "finished":
      view.finish(report.result);
      break;
    case "idle":
      showStatus(task === "train" ? "Done" : "Ready");
      setTask(null);
      break;
    case "failed":
      takeFailure(report);
  }
}

/** The settings of text generation. */
const passage = (): Passage => ({
  prompt: byId<HTMLTextAreaElement>("prompt").value,
  tokens: input("tokens").valueAsNumber,
});

/** The method's default learning rate, as in `sidenet train`. */
function showRate(): void {
  const model = parseModelConfig(tinyBooks, "config.json");
  input("rate").value = String(defaultLearningRate({ method: method() }, model));
}

async function train(): Promise<void> {
  const settings: RunSettings = {
    method: method(),
    steps: input("steps").valueAsNumber,
    learningRate: input("rate").valueAsNumber,
    batchSize: input("batch").valueAsNumber,
    maxLength: input("length").valueAsNumber,
    passage: passage(),
  };
  try {
    const text = await choice.text();
    started = { method: settings.method, steps: settings.steps, text: choice.title };
    byId("after").replaceChildren();
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
  if (task === null) ask("write", { type: "generate", passage: passage() });
});
byId("stop").addEventListener("click", () => {
  input("stop").disabled = true;
  showStatus("Stopping");
  worker.postMessage({ type: "stop" } satisfies Request);
});
byId("device-choice").addEventListener("change", openDevice);
byId("settings").addEventListener("change", ({ target }) => {
  if ((target as HTMLInputElement).name === "method") showRate();
});
showRate();
openDevice();
