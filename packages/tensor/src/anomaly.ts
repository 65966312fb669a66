import { type HostArray, isFloat } from "./dtype.ts";
import { SidenetError } from "./errors.ts";
import { LateResults } from "./late-results.ts";
import type { AnyOpRow } from "./op.ts";
import { formatShape } from "./shape.ts";
import type { Storage, Tensor } from "./tensor.ts";

/** The first element of a tensor that is NaN or infinite. */
export interface NonFinite {
  readonly index: number;
  readonly value: number;
}

/** The first value that is NaN or infinite, or null. */
export function firstNonFinite(values: HostArray): NonFinite | null {
  for (let index = 0; index < values.length; index++) {
    if (!Number.isFinite(values[index])) return { index, value: values[index] };
  }
  return null;
}

type Finding = Promise<NonFinite | null>;

const FINITE: Finding = Promise.resolve(null);

/** The findings in an op's inputs, taken before it runs, because an op may overwrite its inputs. */
interface Watched {
  readonly inputs: readonly Finding[];
  readonly shapes: string;
}

/**
 * Finds the op that made the first NaN or infinity. Outputs are checked once, right after their op; tensors that no op made
 * (weights, data) when an op first reads them. Findings arrive later and are judged in the order of the ops.
 */
export class AnomalyWatch {
  /** Checks a tensor's values at the time of the call. */
  readonly #look: (tensor: Tensor) => Finding;
  #known = new WeakMap<Storage, Finding>();
  #judged: Promise<void> = Promise.resolve();
  readonly #results = new LateResults();
  #first: SidenetError | null = null;

  constructor(look: (tensor: Tensor) => Finding) {
    this.#look = look;
  }

  /** Call before an op runs, and pass the result to `after`. */
  before({ signature }: AnyOpRow, io: Readonly<Record<string, Tensor | null>>): Watched {
    const inputs = signature.inputs.flatMap(({ name }) => io[name] ?? []);
    return {
      inputs: inputs.map((tensor) => this.#known.get(tensor.storage) ?? this.#lookAt(tensor)),
      shapes: signature.inputs
        .flatMap(({ name }) => (io[name] ? `${name} ${io[name].dtype} ${formatShape(io[name].shape)}` : []))
        .join(", "),
    };
  }

  /** Call when an op has run, or has been queued ahead of anything that follows. */
  after(row: AnyOpRow, io: Readonly<Record<string, Tensor | null>>, { inputs, shapes }: Watched): void {
    const { signature } = row;
    const written = [...signature.inputs.filter(({ updated }) => updated), ...signature.outputs].flatMap(
      ({ name }) => (io[name] ? [{ name, finding: this.#lookAt(io[name]) }] : []),
    );
    const judged = this.#judged.then(async () => {
      if (this.#first !== null) return;
      const found = await Promise.all(written.map(({ finding }) => finding));
      const bad = found.findIndex((one) => one !== null);
      if (bad < 0 || (await Promise.all(inputs)).some((one) => one !== null)) return;
      this.#first ??= anomaly(row.name, written[bad].name, found[bad]!, shapes);
    });
    this.#results.add(judged);
    this.#judged = judged.catch(() => {}); // the next wait reports it
  }

  /** Call when the host has written new values: they are looked at when an op first reads them. */
  forget({ storage }: Tensor): void {
    this.#known.delete(storage);
  }

  /** Call when ops have run in between that were not watched. */
  forgetAll(): void {
    this.#known = new WeakMap();
  }

  /**
   * Runs a wait. Then it throws `T-ANOMALY` for the first op that made a NaN or infinity, once to all waits in flight, or errors
   * of the checks.
   */
  async during<T>(wait: () => Promise<T>): Promise<T> {
    const settle = this.#results.begin(() => {
      const first = this.#first;
      this.#first = null;
      if (first) this.#results.throw(first);
    });
    let result: T;
    try {
      result = await wait();
    } catch (error) {
      const checked = this.#results.begin(() => {});
      await checked().catch(() => {}); // follows from this error, or is the same; what was found is told by the next wait
      throw error;
    }
    await settle();
    return result;
  }

  #lookAt(tensor: Tensor): Finding {
    const finding = isFloat(tensor.dtype) ? this.#look(tensor) : FINITE;
    finding.catch(() => {}); // the next wait reports it
    this.#known.set(tensor.storage, finding);
    return finding;
  }
}

function anomaly(op: string, output: string, { index, value }: NonFinite, shapes: string): SidenetError {
  return new SidenetError(
    "T-ANOMALY",
    `${op} made the first value that is not finite: ${output}[${index}] (counted row by row) is ${value}. All its inputs ` +
      `are finite: ${shapes || "none"}. Look for a division by zero, or for values that grew too large: see what leads there, ` +
      "or try a lower learning rate.",
  );
}
