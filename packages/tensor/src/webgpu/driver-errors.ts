/// <reference types="@webgpu/types" preserve="true" />
import { SidenetError } from "../errors.ts";

/** How long to wait for the news that a device is lost, once something was refused. */
const LOSS_PATIENCE_MS = 500;
const MOST_PENDING = 256;

/**
 * What the driver says of a device. Its errors arrive after the calls that caused them, so they are kept for the next wait;
 * only the first of them counts, since others follow from it.
 */
export class DriverErrors {
  readonly #gpu: GPUDevice;
  #first: SidenetError | null = null;
  /** Error scopes whose outcome is not known yet. */
  #pending: Promise<void>[] = [];

  constructor(gpu: GPUDevice, label: string) {
    this.#gpu = gpu;
    gpu.onuncapturederror = ({ error }) =>
      this.note("T-GPU", `${label} reported: ${error.message} This is a bug in a kernel or in the driver.`);
    void gpu.lost.then(({ reason, message }) => {
      this.#first = new SidenetError(
        "T-DEVICE-LOST",
        `${label} is gone (${reason}: ${message}). Its tensors are lost; open a new device, and if it happens again ` +
          "try a smaller batch or look for a driver update.",
      );
    });
  }

  /** Keeps an error, unless there is an earlier one. */
  note(code: string, message: string): void {
    this.#first ??= new SidenetError(code, message);
  }

  /** Throws what was kept: a lost device each time, anything else once. */
  throwFirst(): void {
    const first = this.#first;
    if (first === null) return;
    if (first.code !== "T-DEVICE-LOST") this.#first = null;
    throw first;
  }

  /** Runs `body` in an error scope; what comes of it is judged later, `null` standing for no error. */
  scope<R>(filter: GPUErrorFilter, body: () => R, judge: (error: GPUError | null) => void): R {
    this.#gpu.pushErrorScope(filter);
    try {
      return body();
    } finally {
      this.#pending.push(this.#gpu.popErrorScope().then(judge));
      if (this.#pending.length > MOST_PENDING) this.#pending = [Promise.all(this.#pending).then(() => {})];
    }
  }

  /** Waits for the outcome of all error scopes. */
  async settle(): Promise<void> {
    const pending = this.#pending;
    this.#pending = [];
    await Promise.all(pending);
  }

  /** Waits, after the GPU has refused something, for the news that it is lost: browsers tell it later. */
  async awaitLoss(): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const patience = new Promise((resolve) => {
      timer = setTimeout(resolve, LOSS_PATIENCE_MS);
    });
    await Promise.race([this.#gpu.lost, patience]);
    clearTimeout(timer);
  }
}
