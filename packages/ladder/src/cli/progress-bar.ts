/** A bar that a person watches. */
import { Writable } from "node:stream";
import { MultiBar, type SingleBar } from "cli-progress";
import type { Terminal } from "./terminal.ts";

/** What the library takes for a terminal, over ours. */
function asStream(terminal: Terminal): NodeJS.WriteStream {
  const stream = new Writable({
    write(chunk, _encoding, done) {
      terminal.err(String(chunk));
      done();
    },
  });
  return Object.assign(stream, {
    isTTY: true,
    columns: terminal.columns ?? 80,
  }) as unknown as NodeJS.WriteStream;
}

/** Steps of a run with the time that is left, and a text of the caller's. Lines can be written above it. */
export class ProgressBar {
  readonly #bars: MultiBar;
  readonly #bar: SingleBar;

  constructor(terminal: Terminal, total: number, done: number) {
    this.#bars = new MultiBar({
      format: "{bar} {value}/{total}  {text}  {eta_formatted} left",
      barsize: 20,
      barCompleteChar: "█",
      barIncompleteChar: "░",
      etaBuffer: 20,
      fps: 5,
      hideCursor: null,
      stopOnComplete: false,
      clearOnComplete: true,
      forceRedraw: true,
      stream: asStream(terminal),
    } as ConstructorParameters<typeof MultiBar>[0]);
    this.#bar = this.#bars.create(total, done, { text: "" });
  }

  update(done: number, text: string): void {
    this.#bar.update(done, { text });
  }

  /** Writes a line above the bar. */
  log(text: string): void {
    this.#bars.log(`${text}\n`);
  }

  stop(): void {
    this.#bars.stop();
  }
}
