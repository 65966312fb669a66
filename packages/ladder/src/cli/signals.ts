/** Ctrl-C and SIGTERM for commands whose work can be stopped between steps. */
import { EXIT } from "./session.ts";
import type { Report } from "./terminal.ts";

export interface StopSignals {
  /** Aborts at the first signal. */
  readonly signal: AbortSignal;
  /** The exit code of a command that was stopped; 0 if no signal came. */
  exitCode(): number;
  off(): void;
}

/** Aborts at the first signal and prints `action`; the second ends the process at once, and what was saved by then stays. */
export function stopOnSignals(report: Report, action: string): StopSignals {
  const stop = new AbortController();
  let first: "SIGINT" | "SIGTERM" | null = null;
  const onSignal = (signal: NodeJS.Signals) => {
    if (first !== null) process.exit(EXIT[first]);
    first = signal as "SIGINT" | "SIGTERM";
    report.note(`${action}. Press Ctrl-C again to stop at once`);
    stop.abort();
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  return {
    signal: stop.signal,
    exitCode: () => (first === null ? EXIT.ok : EXIT[first]),
    off: () => process.off("SIGINT", onSignal).off("SIGTERM", onSignal),
  };
}
