/** Where a command writes. Tests capture both. */
export interface Terminal {
  /** Standard output: what was asked for. */
  out(text: string): void;
  /** Standard error: progress, remarks, errors. */
  err(text: string): void;
  /** A person is watching standard error, so a line may be rewritten in place. */
  readonly interactive: boolean;
}

/** What a command tells while it runs. With `--json` nothing of it goes to standard output. */
export class Report {
  readonly #terminal: Terminal;
  readonly #json: boolean;
  #overwritten = 0;

  constructor(terminal: Terminal, json: boolean) {
    this.#terminal = terminal;
    this.#json = json;
  }

  /** A part of the result, for people: standard output, or nowhere with `--json`. */
  print(text: string): void {
    if (this.#json) return;
    this.#clear();
    this.#terminal.out(`${text}\n`);
  }

  /** A line of progress or a remark: standard error. */
  note(text: string): void {
    this.#clear();
    this.#terminal.err(`${text}\n`);
  }

  /** A line that the next one replaces; shown only to a person who watches. */
  progress(text: string): void {
    if (!this.#terminal.interactive) return;
    this.#clear();
    this.#terminal.err(text);
    this.#overwritten = text.length;
  }

  #clear(): void {
    if (this.#overwritten > 0) this.#terminal.err(`\r${" ".repeat(this.#overwritten)}\r`);
    this.#overwritten = 0;
  }
}
