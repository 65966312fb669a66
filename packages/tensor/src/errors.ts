/**
 * Every error that a sidenet package throws: a stable `code`, and a message that names the object, what was received, what was
 * expected and a likely cure. The message starts with the code, so that a log line is enough to look it up.
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

/** Limit on a message, which may quote megabytes of a file: its beginning, and the cure at its end, are kept. */
function shortened(message: string): string {
  const [head, tail] = [1000, 500];
  return message.length <= head + tail ? message : `${message.slice(0, head)} ... ${message.slice(-tail)}`;
}
