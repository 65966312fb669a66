/**
 * Every error that leaves a sidenet package: a stable `code`, and a message that names the thing, what came, what was
 * wanted and one likely cure. The code stands in front of the message, so a log line is enough to look it up.
 */
export class SidenetError extends Error {
  readonly code: string;
  /** The message without the code. */
  readonly text: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    const text = shortened(message);
    super(`[${code}] ${text}`, options);
    this.name = "SidenetError";
    this.code = code;
    this.text = text;
  }
}

/** Where a message quotes a file, it may quote megabytes of it: what comes first and the cure at the end stay. */
function shortened(message: string): string {
  const [head, tail] = [1000, 500];
  return message.length <= head + tail ? message : `${message.slice(0, head)} ... ${message.slice(-tail)}`;
}
