/**
 * Every error that leaves a sidenet package: a stable `code`, and a message that names the thing, what came, what was
 * wanted and one likely cure. The code stands in front of the message, so a log line is enough to look it up.
 */
export class SidenetError extends Error {
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(`[${code}] ${message}`, options);
    this.name = "SidenetError";
    this.code = code;
  }
}
