/** The plot of the loss by step, of the current run and earlier ones, with uPlot as in the report of `sidenet train`. */
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { colour, loss as shown } from "./dom.ts";

/** The points of a run so far. */
export interface Curve {
  readonly label: string;
  /** A colour of style.css. */
  readonly colour: string;
  readonly steps: number;
  readonly losses: number[];
  /** Losses on the held-out text, by steps. */
  readonly evaluations: [step: number, loss: number][];
}

const HEIGHT = 260;
/** Distances of the marks on the axis of steps, which are whole. */
const WHOLE = Array.from({ length: 7 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();

/** A running mean over a share of the run, which smooths noise. */
function smoothed(values: readonly number[]): number[] {
  const most = Math.max(1, Math.min(50, values.length / 8));
  let mean = 0;
  return values.map((value, i) => {
    mean += (value - mean) / Math.min(most, i + 1);
    return mean;
  });
}

const column = (length: number, points: Iterable<readonly [number, number]>): (number | null)[] => {
  const values = new Array<number | null>(length).fill(null);
  for (const [step, value] of points) values[step] = value;
  return values;
};

export class LossPlot {
  readonly #host: HTMLElement;
  #chart: uPlot | null = null;
  #curves: readonly Curve[] = [];
  #isDue = false;

  constructor(host: HTMLElement) {
    this.#host = host;
    new ResizeObserver(() => this.#chart?.setSize({ width: host.clientWidth, height: HEIGHT })).observe(host);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show(this.#curves));
  }

  /** Draws these curves; the last one is the current run. */
  show(curves: readonly Curve[]): void {
    this.#curves = curves;
    this.#chart?.destroy();
    this.#chart = curves.length === 0 ? null : new uPlot(this.#options(), this.#data(), this.#host);
    this.#describe();
  }

  /** Redraws after points were added, at most once per frame. */
  update(): void {
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#chart?.setData(this.#data());
      this.#describe();
    });
  }

  #describe(): void {
    const run = this.#curves.at(-1);
    const [first, last] = [run?.losses[0], run?.losses.at(-1)];
    this.#host.dataset.points = String(run?.losses.length ?? 0);
    this.#host.setAttribute(
      "aria-label",
      run === undefined || first === undefined || last === undefined
        ? "Loss by step: no step yet"
        : `Loss of ${run.label} by step: ${shown(first)} at first, ${shown(last)} after ${run.losses.length} steps`,
    );
  }

  #data(): uPlot.AlignedData {
    const most = Math.max(...this.#curves.map(({ steps }) => steps));
    const length = most + 1;
    const x = Array.from({ length }, (_, step) => step);
    const rows = this.#curves.flatMap(({ losses, evaluations }, i) => {
      const mean = column(
        length,
        smoothed(losses).map((value, step) => [step, value] as const),
      );
      if (i < this.#curves.length - 1) return [mean];
      return [column(length, losses.entries()), mean, column(length, evaluations)];
    });
    return [x, ...rows];
  }

  #series(): uPlot.Series[] {
    const value = (_: uPlot, found: number | null) => (found == null ? "-" : shown(found));
    return this.#curves.flatMap((curve, i): uPlot.Series[] => {
      const stroke = colour(curve.colour);
      const points = { show: false };
      const mean = { label: curve.label, stroke, width: 2, spanGaps: true, points, value };
      if (i < this.#curves.length - 1) return [{ ...mean, width: 1.5, dash: [4, 4], alpha: 0.7 }];
      return [
        { label: "each step", stroke, width: 1, alpha: 0.3, points, value },
        mean,
        {
          label: "held out",
          stroke: colour("text"),
          width: 1.5,
          spanGaps: true,
          points: { show: true, size: 7, fill: colour("card"), width: 2 },
          value,
        },
      ];
    });
  }

  #options(): uPlot.Options {
    const grid = { stroke: colour("line"), width: 1 };
    const axis = { stroke: colour("quiet"), grid, ticks: grid, font: "12px system-ui, sans-serif" };
    return {
      width: Math.max(200, this.#host.clientWidth),
      height: HEIGHT,
      cursor: { points: { size: 6 } },
      scales: { x: { time: false } },
      series: [{ label: "step" }, ...this.#series()],
      axes: [
        { ...axis, incrs: WHOLE },
        { ...axis, size: 48, values: (_, ticks) => ticks.map((tick) => tick.toFixed(2)) },
      ],
    };
  }
}
