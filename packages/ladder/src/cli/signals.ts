/** Ctrl-C, SIGTERM and a closed terminal (SIGHUP) for commands whose work can be stopped between steps, or in a text. */
import { EXIT } from "./session.ts";
import type { Report } from "./terminal.ts";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

interface StopSignals {
  /** Aborts at the first signal. */
  readonly signal: AbortSignal;
  /** The exit code of a command that was stopped; 0 if no signal came. */
  exitCode(): number;
  /** Leaves the signals to others again. */
  [Symbol.dispose](): void;
}

/** Aborts at the first signal and prints `action`; the second ends the process at once, and what was saved by then stays. */
export function stopOnSignals(report: Report, action: string): StopSignals {
  const stop = new AbortController();
  let first: (typeof SIGNALS)[number] | null = null;
  const onSignal = (signal: NodeJS.Signals) => {
    if (first !== null) {
      if (signal === "SIGHUP") return; // both the shell and the system send it when a terminal closes
      process.exit(EXIT[first]);
    }
    first = signal as (typeof SIGNALS)[number];
    report.note(`${action}. Press Ctrl-C again to stop at once`);
    stop.abort();
  };
  for (const signal of SIGNALS) process.on(signal, onSignal);
  return {
    signal: stop.signal,
    exitCode: () => (first === null ? EXIT.ok : EXIT[first]),
    [Symbol.dispose]() {
      for (const signal of SIGNALS) process.off(signal, onSignal);
    },
  };
}

/** From here to its disposal Ctrl-C ends what is written, and not the process. */
export class Interrupt {
  readonly #abort = new AbortController();
  readonly #listener = () => this.#abort.abort();

  constructor() {
    process.on("SIGINT", this.#listener);
  }

  [Symbol.dispose](): void {
    process.off("SIGINT", this.#listener);
  }

  /** Aborted by Ctrl-C. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }
}
