import { SidenetError } from "./errors.ts";
import { Tensor } from "./tensor.ts";

/** Every tensor within a value that a scope returns: itself, or in arrays, maps and plain objects. */
function* tensorsIn(value: unknown): IterableIterator<Tensor> {
  if (value instanceof Tensor) yield value;
  else if (Array.isArray(value) || value instanceof Set) for (const item of value) yield* tensorsIn(item);
  else if (value instanceof Map) yield* tensorsIn([...value.values()]);
  else if (value !== null && typeof value === "object" && Object.getPrototypeOf(value) === Object.prototype) {
    yield* tensorsIn(Object.values(value));
  }
}

function refusePromise(result: unknown, label: string): void {
  if (typeof (result as { then?: unknown } | null | undefined)?.then !== "function") return;
  throw new SidenetError(
    "T-SCOPE",
    `the body of ${label} returned a promise. A scope ends when its body returns, so what is awaited inside it ` +
      "would read freed tensors: await after the scope instead.",
  );
}

/**
 * The open scopes of a device. A body is synchronous, since encoding is; only reads wait, and they come after. So a plain
 * stack is safe.
 */
export class ScopeStack {
  #frames: Set<Tensor>[] = [];
  /** Of the open scopes, the outermost first. */
  readonly labels: string[] = [];

  /** Hands a new tensor to the innermost scope; without one it belongs to the caller. */
  adopt(tensor: Tensor): void {
    const frame = this.#frames.at(-1);
    if (frame === undefined) return;
    frame.add(tensor);
    tensor.owner = frame;
  }

  /** Takes a tensor out of its scope: it lives until it is disposed. */
  keep(tensor: Tensor): void {
    tensor.owner?.delete(tensor);
    tensor.owner = null;
  }

  /**
   * Runs a body in a scope of its own. Where it throws, what was made in it is freed, and what it was to consume stays the
   * caller's. Throws `T-SCOPE` for a body that returns a promise.
   */
  run<R>(body: () => R, consume: Iterable<Tensor>, label: string): R {
    const frame = new Set<Tensor>();
    this.#frames.push(frame);
    this.labels.push(label);
    const by = `the end of ${label}`;
    let result: R;
    try {
      result = body();
      refusePromise(result, label);
    } catch (error) {
      for (const tensor of frame) tensor.dispose(by);
      throw error;
    } finally {
      this.#frames.pop();
      this.labels.pop();
    }
    const escaping = new Set(tensorsIn(result));
    for (const tensor of escaping) {
      if (tensor.owner !== frame) continue;
      frame.delete(tensor);
      tensor.owner = null;
      this.adopt(tensor);
    }
    for (const tensor of [...frame]) tensor.dispose(by);
    for (const tensor of consume) if (!escaping.has(tensor)) tensor.dispose(`${label}, which consumed it`);
    return result;
  }
}
