import { SidenetError } from "./errors.ts";
import { Tensor } from "./tensor.ts";

/** Whether the members of a value are searched: an object literal, or one without a prototype, as `Object.groupBy` makes. */
function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

/**
 * Adds the return value of a scope and all that is nested in it, in arrays, sets, maps and plain objects: tensors, and what holds
 * them, once each.
 */
function addObjects(value: unknown, found: Set<object>): void {
  if (value === null || typeof value !== "object" || found.has(value)) return;
  found.add(value);
  if (value instanceof Tensor) return;
  if (Array.isArray(value) || value instanceof Set) for (const item of value) addObjects(item, found);
  else if (value instanceof Map) for (const item of value.values()) addObjects(item, found);
  else if (isPlain(value)) for (const item of Object.values(value)) addObjects(item, found);
}

function refusePromise(result: unknown, label: string): void {
  if (typeof (result as { then?: unknown } | null | undefined)?.then !== "function") return;
  throw new SidenetError(
    "T-SCOPE",
    `the body of ${label} returned a promise. A scope ends when its body returns, so what is awaited inside it ` +
      "would read freed tensors: await after the scope instead.",
  );
}

/** The open scopes of a device. Scope bodies are synchronous (only reads wait, outside of them), so a plain stack is enough. */
export class ScopeStack {
  #frames: Set<Tensor>[] = [];
  /** Labels of the open scopes, outermost first. */
  readonly labels: string[] = [];

  /** Gives a new tensor to the innermost scope; without an open scope the caller owns it. */
  adopt(tensor: Tensor): void {
    const frame = this.#frames.at(-1);
    if (frame === undefined) return;
    frame.add(tensor);
    tensor.owner = frame;
  }

  /** Takes a tensor out of its scope: it then lives until `dispose()`. */
  keep(tensor: Tensor): void {
    tensor.owner?.delete(tensor);
    tensor.owner = null;
  }

  /**
   * Runs a body in a new scope. If it throws, the tensors made in it are freed and the tensors to consume stay with the
   * caller. Throws `T-SCOPE` for a body that returns a promise.
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
    const escaping = new Set<object>();
    addObjects(result, escaping);
    for (const tensor of escaping) {
      if (!(tensor instanceof Tensor) || tensor.owner !== frame) continue;
      frame.delete(tensor);
      tensor.owner = null;
      this.adopt(tensor);
    }
    for (const tensor of [...frame]) tensor.dispose(by);
    for (const tensor of consume) if (!escaping.has(tensor)) tensor.dispose(`${label}, which consumed it`);
    return result;
  }
}
