/** How every command ends: its result as JSON or as text, errors by kind, and the exit code. */
import { SidenetError } from "@sidenet/tensor";
import { CommanderError } from "commander";
import { ConfigError } from "../methods/config-error.ts";
import { flagOf } from "./method-options.ts";
import { Report, type Terminal } from "./terminal.ts";

/** Exit codes: they distinguish a usage mistake, a failure, and the end by a signal. */
export const EXIT = { ok: 0, failed: 1, usage: 2, SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;

/** Code of the errors that a command throws for options that do not go together. */
const USAGE = "C-USAGE";
/** Codes that say: an option is wrong by itself, beside another one, or for the model. Faults of files and data are failures. */
const USAGE_CODES: readonly string[] = [
  USAGE,
  "C-CONFIG",
  "L-OPTION",
  "L-METHOD",
  "L-CONVERT-TYPE",
  "L-HEAD",
];

/** What a command found. The text for people was printed by then. */
export interface Outcome {
  /** The object that `--json` prints. */
  readonly json: object;
  readonly exitCode?: number;
}

/** The context of one invocation, shared by the commands. */
export class Session {
  readonly terminal: Terminal;
  readonly report: Report;
  readonly #json: boolean;
  exitCode: number = EXIT.ok;

  /** Whether the arguments hold `--json`, `--quiet`: known before they are parsed, since parsing may be what fails. */
  constructor(terminal: Terminal, json: boolean, quiet = false) {
    this.terminal = terminal;
    this.report = new Report(terminal, json, quiet);
    this.#json = json;
  }

  /** Wraps the body of a command for commander's `action`. */
  action<Args extends unknown[]>(
    body: (report: Report, ...args: Args) => Promise<Outcome>,
  ): (...args: Args) => Promise<void> {
    return async (...args) => {
      const { json, exitCode = EXIT.ok } = await body(this.report, ...args);
      if (this.#json) this.terminal.out(`${JSON.stringify(json)}\n`);
      this.exitCode = exitCode;
    };
  }

  /** Reports an error according to its kind and sets the exit code. What was typed is named as it was typed. */
  fail(thrown: unknown): void {
    const error = thrown instanceof ConfigError ? thrown.renamed(flagOf) : thrown;
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return; // --help and --version: printed by then
      this.exitCode = EXIT.usage;
      this.#failJson(USAGE, error.message.replace(/^error: /, "")); // commander has printed the text
      return;
    }
    this.report.endBar();
    const usage = error instanceof SidenetError && USAGE_CODES.includes(error.code);
    this.exitCode = usage ? EXIT.usage : EXIT.failed;
    if (error instanceof SidenetError) {
      this.report.error(error.message);
      this.#failJson(error.code, error.text);
      return;
    }
    const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.report.error(
      `${stack}\n\nThis is a bug in sidenet. Please report it with the command and the lines above.`,
    );
    this.#failJson("C-BUG", error instanceof Error ? error.message : String(error));
  }

  #failJson(code: string, message: string): void {
    if (this.#json) this.terminal.out(`${JSON.stringify({ error: { code, message } })}\n`);
  }
}
