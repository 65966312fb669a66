import { SidenetError } from "../errors.ts";
import { LateResults } from "../late-results.ts";

/** How long to wait for the device-lost event after a call was refused. */
const LOSS_PATIENCE_MS = 500;

const isOutOfMemory = (error: GPUError): boolean => error.constructor.name === "GPUOutOfMemoryError";

/**
 * Collects the errors that the driver reports. They arrive after the calls that caused them, so they are kept for the next
 * wait. Only the first one is kept, since later ones usually follow from it.
 */
export class DriverErrors {
  readonly #gpu: GPUDevice;
  #first: SidenetError | null = null;
  /**
   * The first error outside all scopes. It may follow from that of a scope whose result is pending (a command that uses a buffer
   * for which there was no memory), so it counts only if all scopes have ended without one.
   */
  #uncaptured: SidenetError | null = null;
  /** Those of error scopes. A lost device makes them reject. */
  readonly #results = new LateResults();

  constructor(gpu: GPUDevice, label: string) {
    this.#gpu = gpu;
    gpu.onuncapturederror = ({ error }) => {
      const [code, cure] = isOutOfMemory(error)
        ? ["T-OUT-OF-MEMORY", "A smaller batch or context, or 16-bit weights would help."]
        : ["T-GPU", "This is a bug in a kernel or in the driver."];
      this.#uncaptured ??= new SidenetError(code, `${label} reported: ${error.message} ${cure}`);
    };
    void gpu.lost.then(({ reason, message }) => {
      this.#first = new SidenetError(
        "T-DEVICE-LOST",
        `${label} is gone (${reason}: ${message}). Its tensors are lost; open a new device, and if it happens again ` +
          "try a smaller batch or look for a driver update.",
      );
    });
  }

  /** Keeps an error, unless there is an earlier one already. */
  note(code: string, message: string): void {
    this.#first ??= new SidenetError(code, message);
  }

  /** Throws the error that was kept: a lost device every time, any other error once, but to all waits in flight too. */
  throwFirst(): void {
    const first = this.#first;
    if (first === null) return;
    if (first.code !== "T-DEVICE-LOST") this.#first = null;
    this.#uncaptured = null;
    this.#results.throw(first);
  }

  /** Runs `body` in an error scope; `judge` gets the result later, null if there was no error. */
  scope<R>(filter: GPUErrorFilter, body: () => R, judge: (error: GPUError | null) => void): R {
    this.#gpu.pushErrorScope(filter);
    try {
      return body();
    } finally {
      this.#results.add(this.#gpu.popErrorScope().then(judge));
    }
  }

  /** Begins a wait; what it returns ends it: waits for the results of all error scopes and throws what `check` throws. */
  begin(check: () => void): () => Promise<void> {
    return this.#results.begin(() => {
      this.#first ??= this.#uncaptured;
      this.#uncaptured = null;
      check();
    });
  }

  /** Waits for a device-lost event after a refused call: browsers report it later. */
  async awaitLoss(): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const patience = new Promise((resolve) => {
      timer = setTimeout(resolve, LOSS_PATIENCE_MS);
    });
    await Promise.race([this.#gpu.lost, patience]);
    clearTimeout(timer);
  }
}
