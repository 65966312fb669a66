/** Shows the runs since the page was loaded: curves, memory and numbers. */
import type { BytesByCategory } from "@sidenet/tensor";
import { byId, bytes, count, duration, loss } from "./dom.ts";
import { type Curve, LossPlot } from "./loss-plot.ts";
import { type MemoryBar, showMemory, showMemoryKey } from "./memory-view.ts";
import type { PlaygroundMethod, Report, RunFacts, RunResult } from "./protocol.ts";
import { addRun } from "./runs-table.ts";

const METHOD_NAMES: Readonly<Record<PlaygroundMethod, string>> = { ladder: "Ladder", qlora: "QLoRA" };
const COLOURS: Readonly<Record<PlaygroundMethod, string>> = { ladder: "c0", qlora: "c1" };
/** The number of earlier runs that are drawn beside the current one. */
const MAX_EARLIER = 3;

/** A run as the page has requested it. */
export interface BegunRun {
  readonly method: PlaygroundMethod;
  /** The name of the text. */
  readonly text: string;
  readonly steps: number;
}

interface Run {
  readonly title: string;
  readonly curve: Curve;
  readonly initialLoss: number;
  peak: BytesByCategory | null;
  tokens: number;
  seconds: number;
}

export class RunView {
  readonly #plot = new LossPlot(byId("loss"));
  readonly #runs: Run[] = [];
  #live: BytesByCategory | null = null;

  constructor() {
    this.#drawMemory();
  }

  get #run(): Run {
    const run = this.#runs.at(-1);
    if (run === undefined) throw new Error("the worker tells of a run that was not begun");
    return run;
  }

  begin({ method, text, steps }: BegunRun, { initialLoss, trainableParameters }: RunFacts): void {
    const label = METHOD_NAMES[method];
    const curve: Curve = { label, colour: COLOURS[method], steps, losses: [], evaluations: [] };
    this.#runs.push({ title: `${label}, ${text}`, curve, initialLoss, peak: null, tokens: 0, seconds: 0 });
    if (this.#runs.length > MAX_EARLIER + 1) this.#runs.shift();
    byId("loss-empty").hidden = true;
    for (const id of ["tile-peak", "tile-speed"]) byId(id).textContent = "-";
    byId("tile-parameters").textContent = count(trainableParameters);
    this.#plot.show(this.#runs.map((run) => run.curve));
    showProgress(0, steps);
    this.evaluate(0, initialLoss);
    this.#drawMemory();
  }

  /** Returns the progress of the run as a sentence. */
  step({ metrics, live }: Extract<Report, { type: "step" }>): string {
    const run = this.#run;
    const { curve } = run;
    const done = metrics.step + 1;
    const value = metrics.loss ?? Number.NaN;
    curve.losses.push(value);
    run.peak = metrics.peak_bytes_by_category;
    run.tokens += metrics.tokens;
    run.seconds += metrics.seconds;
    this.#live = live;
    this.#plot.update();
    this.#drawMemory();
    showProgress(done, curve.steps);
    byId("tile-peak").textContent = bytes(metrics.peak_bytes);
    byId("tile-speed").textContent = (run.tokens / run.seconds).toFixed(0);
    const left = duration(((curve.steps - done) * run.seconds) / done);
    return `Step ${done} of ${curve.steps}, loss ${loss(value)}, ${left} left`;
  }

  /** Adds a loss on the held-out text after a number of steps. */
  evaluate(step: number, value: number): void {
    const { curve, initialLoss } = this.#run;
    curve.evaluations.push([step, value]);
    byId("tile-loss").textContent = step === 0 ? loss(value) : `${loss(initialLoss)} → ${loss(value)}`;
    this.#plot.update();
  }

  finish(result: RunResult): void {
    const { title, initialLoss, curve } = this.#run;
    if (curve.evaluations.at(-1)?.[0] !== result.steps) this.evaluate(result.steps, result.finalLoss);
    addRun({ title, initialLoss, result });
  }

  #drawMemory(): void {
    const peaks = this.#runs.flatMap(({ title, peak }): MemoryBar[] =>
      peak ? [{ label: title, what: "peak", live: peak }] : [],
    );
    const now: MemoryBar[] = this.#live ? [{ label: "now", what: "live", live: this.#live }] : [];
    showMemory([...peaks, ...now]);
    showMemoryKey(this.#runs.at(-1)?.peak ?? this.#live);
  }
}

function showProgress(done: number, steps: number): void {
  const bar = byId("progress");
  bar.setAttribute("aria-valuemax", String(steps));
  bar.setAttribute("aria-valuenow", String(done));
  bar.querySelector("i")!.style.width = `${(100 * done) / steps}%`;
}
