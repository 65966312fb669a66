import { ProgressBar } from "./progress-bar.ts";

/** Where a command writes. Tests capture both. */
export interface Terminal {
  /** Standard output: what was asked for. */
  out(text: string): void;
  /** Standard error: progress, notes, errors. */
  err(text: string): void;
  /** A person is watching standard error, so a line may be rewritten in place. */
  readonly interactive: boolean;
  /** Width of standard error, where it has one. */
  readonly columns?: number;
  /** A person types these lines. */
  readonly typed?: boolean;
  /** Lines of standard input, for the commands that read it; `prompt` is shown to a person who types them. */
  lines?(prompt: string): AsyncIterable<string>;
}

/** Output of a running command. With `--json` none of it goes to standard output; with `--quiet` only errors are printed. */
export class Report {
  readonly #terminal: Terminal;
  readonly #json: boolean;
  readonly #quiet: boolean;
  #overwritten = 0;
  #bar: ProgressBar | null = null;

  constructor(terminal: Terminal, json: boolean, quiet = false) {
    this.#terminal = terminal;
    this.#json = json;
    this.#quiet = quiet;
  }

  /** A person watches, so that bars and lines that are rewritten make sense. */
  get watched(): boolean {
    return this.#terminal.interactive && !this.#quiet;
  }

  /** A part of the result, for people: standard output, or nowhere with `--json` or `--quiet`. */
  print(text: string): void {
    if (this.#json || this.#quiet) return;
    this.#clear();
    this.#terminal.out(`${text}\n`);
  }

  /** A part of a line of the result, as it comes. */
  write(text: string): void {
    if (this.#json || this.#quiet) return;
    this.#clear();
    this.#terminal.out(text);
  }

  /** A line of progress or a remark: standard error. */
  note(text: string): void {
    if (!this.#quiet) this.error(text);
  }

  /** An error, which is always printed: standard error. */
  error(text: string): void {
    if (this.#bar) {
      this.#bar.log(text);
      return;
    }
    this.#clear();
    this.#terminal.err(`${text}\n`);
  }

  /** A line that the next one replaces; shown only to a person who watches. */
  progress(text: string): void {
    if (!this.watched || this.#bar) return;
    this.#clear();
    this.#terminal.err(text);
    this.#overwritten = text.length;
  }

  /** A bar at the foot of the terminal, `done` of `total`; shown only to a person who watches. */
  bar(done: number, total: number, text: string): void {
    if (!this.watched) return;
    this.#clear();
    this.#bar ??= new ProgressBar(this.#terminal, total, done);
    this.#bar.update(done, text);
  }

  /** Takes the bar away. */
  endBar(): void {
    this.#bar?.stop();
    this.#bar = null;
  }

  #clear(): void {
    if (this.#overwritten > 0) this.#terminal.err(`\r${" ".repeat(this.#overwritten)}\r`);
    this.#overwritten = 0;
  }
}
