import { type AnyOpRow, buildOps, type Device, isFloat, type Ops, sameShape, Tensor } from "@sidenet/tensor";
import { BackwardPass, type Gradients, type RecordedOp, valuesBehind } from "./backward.ts";
import type { TrackedValue } from "./gradient-slots.ts";
import {
  refuseClosed,
  refuseInPlace,
  refuseLeaf,
  refuseLossShape,
  refuseNoGradient,
  refuseNoGradientRow,
  refuseSecondBackward,
  refuseSecondOrder,
  refuseUntrackedLoss,
  refuseUnused,
  refuseUpstream,
} from "./refusals.ts";
import {
  hasNoGradient,
  INTEGER_OUTPUT,
  type Pull,
  type PullRow,
  planOf,
  selectPulls,
} from "./rules/grad-row.ts";
import { gradRowOf } from "./rules/index.ts";
import { type SavedFormats, type SavedTensor, SavedTensors } from "./saved-tensors.ts";

/** Tensors to train, or a `ParamStore`: its names go into error messages. */
export type Trainable = Iterable<Tensor | readonly [name: string, tensor: Tensor]>;

/** Options of `Tape.backward`. */
export interface BackwardOptions {
  /** Leaves that the loss does not depend on are left out of the result instead of being an error. */
  readonly allowUnused?: boolean;
}

/** How a tape keeps what it saves. */
export interface TapeOptions {
  /** Formats in which f32 tensors are kept until the backward pass; the default is f32 for all. */
  readonly formats?: SavedFormats;
}

/** A recorded op as tests and reports see it. */
export interface TapeRecord {
  /** The name of the op, "checkpoint", or "custom NAME" for a `customGradient`. */
  readonly op: string;
  /** Names of the tracked inputs. */
  readonly tracked: readonly string[];
  /** Operands and residuals kept for the backward pass. Records share a tensor that several of them keep. */
  readonly saved: readonly { readonly name: string; readonly sizeBytes: number }[];
}

/** The backward pass of a function that is recorded as one op. */
interface RecordedFunction {
  readonly saves: readonly Tensor[];
  /** Its gradients are in new memory even though they were not made by the `ops` that `pull` is given. */
  readonly isFresh: boolean;
  /** Gradients of the inputs at the positions `tracked`, from the gradient dy of the output. */
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: readonly Tensor[],
    tracked: readonly number[],
  ) => readonly Tensor[];
}

type Inputs = readonly (Tensor | null | undefined)[];

/** A method for each row of the op table; the constructor assigns them. */
export interface Tape extends Ops {}

/**
 * An `Ops` that computes with the device's ops and records those whose inputs are tracked, for one backward pass.
 *
 * A value is tracked when it is one of the `trainable` leaves or was computed from a tracked value *through this tape*
 * (methods.md, 5). Every other op runs on the device without being recorded, so a frozen model costs nothing. A
 * record saves only what the gradient rules of its tracked inputs need; the tape owns these tensors and frees each as
 * `backward` consumes it. Tracking goes by tensor identity: `device.retain(t)` is a handle on the same memory that is not
 * tracked.
 *
 * Throws `A-LEAF` for a leaf that is not a live float tensor on `device`, `A-FORMAT` for an unknown format.
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the constructor assigns what the interface above promises
export class Tape {
  readonly device: Device;
  readonly #leaves: TrackedValue[] = [];
  readonly #values = new WeakMap<Tensor, TrackedValue>();
  readonly #records: RecordedOp[] = [];
  readonly #saved: SavedTensors;
  /** The gradients that `backward` returned. To this tape they are an error; another tape takes them as constants. */
  readonly #gradients = new WeakSet<Tensor>();
  #state: "open" | "spent" | "disposed" = "open";

  constructor(device: Device, trainable: Trainable, options: TapeOptions = {}) {
    this.device = device;
    this.#saved = new SavedTensors(device, options.formats ?? {});
    buildOps((row, inputs, attrs) => this.#execute(row, inputs, attrs), this);
    if (typeof trainable?.[Symbol.iterator] !== "function") {
      throw refuseLeaf(
        `${trainable}`,
        "it is no list. Put a tensor into an array, or tensors into a ParamStore",
      );
    }
    for (const item of trainable) {
      const [name, tensor] = isEntry(item) ? item : [`${item}`, item];
      this.#addLeaf(name, tensor);
    }
  }

  /** Whether a gradient would flow into this tensor. */
  isTracked(tensor: Tensor): boolean {
    return this.#values.has(tensor);
  }

  /** The name of a leaf; null for other tensors. @internal */
  leafName(tensor: Tensor): string | null {
    return this.#values.get(tensor)?.leaf?.name ?? null;
  }

  /** The recorded ops in order; empty once `backward` has consumed them. */
  get records(): readonly TapeRecord[] {
    return this.#records.map(({ op, inputs, saved }) => ({
      op,
      tracked: [...inputs.keys()],
      saved: [...saved].flatMap(([name, tensor]) => (tensor ? [{ name, sizeBytes: tensor.sizeBytes }] : [])),
    }));
  }

  /** @internal */
  get recordCount(): number {
    return this.#records.length;
  }

  /** Bytes that are alive only for the backward pass. A saved weight or rung does not count: it is resident anyway. */
  get savedBytes(): number {
    return this.#saved.sizeBytes;
  }

  /**
   * Gradients of `loss` with respect to the leaves, each f32 and accounted as "gradients". They belong to the innermost
   * scope, or to the caller where there is none. `upstream` is the gradient of `loss` itself, of its shape and dtype; without
   * one, `loss` must have one element and its gradient is 1. The pass frees the records and what they saved as it goes, so a
   * tape has one backward pass.
   *
   * Throws `A-UNTRACKED`, `A-LOSS-SHAPE`, `A-UPSTREAM`, or `A-UNUSED` naming the leaves that the loss does not depend on,
   * all before anything is computed; `A-TWICE` and `A-CLOSED`; `A-CHANGED` for a saved tensor that was changed in place since,
   * and whatever an op throws, after which the tape is spent.
   */
  backward(loss: Tensor, upstream: Tensor | null = null, options: BackwardOptions = {}): Gradients {
    if (this.#state === "spent") throw refuseSecondBackward();
    if (this.#state === "disposed") throw refuseClosed("backward was called", this.#state);
    const root = this.#checkLoss(loss, upstream);
    if (!options.allowUnused) this.#checkReached(root);
    this.#state = "spent";
    try {
      const pass = new BackwardPass(this.device, this.#saved);
      const gradients = pass.run(root, upstream, this.#records, this.#leaves);
      for (const gradient of gradients.values()) this.#gradients.add(gradient);
      return gradients;
    } finally {
      this.#release("the failed backward pass");
    }
  }

  /** Frees what the tape still holds; ops on tracked values are refused from here on. A second call does nothing. */
  dispose(): void {
    this.#state = "disposed";
    this.#release("its tape's dispose()");
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /**
   * Records a function that ran outside this tape as one op, if an input is tracked; for `checkpoint` and `customGradient`.
   * Throws `A-CLOSED`, `A-SECOND-ORDER`. @internal
   */
  recordFunction(
    name: string,
    inputs: readonly Tensor[],
    output: Tensor,
    { saves, isFresh, pull }: RecordedFunction,
  ): void {
    const tracked = new Map<string, TrackedValue>();
    for (const [i, tensor] of inputs.entries()) {
      if (this.#gradients.has(tensor))
        throw refuseSecondOrder(name, `input ${i} is a gradient that this tape made`);
      const value = this.#values.get(tensor);
      if (value) tracked.set(`${i}`, value);
    }
    if (tracked.size === 0) return;
    if (this.#state !== "open") throw refuseClosed(`${name} was given a tracked tensor`, this.#state);
    const positions = [...tracked.keys()].map(Number);
    const names = saves.map((_, i) => `${i}`);
    const run: Pull["run"] = (ops, dy, saved) =>
      pull(
        ops,
        dy,
        names.map((i) => saved[i]!),
        positions,
      );
    const value = { shape: output.shape, dtype: output.dtype, leaf: null };
    this.#values.set(output, value);
    const saved = new Map(saves.map((tensor, i) => [names[i], this.#keep(tensor)]));
    const plan = planOf([{ inputs: [...tracked.keys()], saves: names, isFresh, run }]);
    this.#records.push({ op: name, attrs: {}, inputs: tracked, output: value, plan, saved });
  }

  #addLeaf(name: string, tensor: Tensor): void {
    if (!(tensor instanceof Tensor)) throw refuseLeaf(name, `it is ${tensor}, not a tensor`);
    if (tensor.disposed) throw refuseLeaf(name, "it was freed");
    if (tensor.device !== this.device) {
      throw refuseLeaf(
        name,
        `it is on ${tensor.device.kind}, the tape on another device (${this.device.kind})`,
      );
    }
    if (!isFloat(tensor.dtype))
      throw refuseLeaf(name, `it is ${tensor.dtype}, and only f32 and f16 have gradients`);
    if (this.#values.has(tensor)) return;
    const value = { shape: tensor.shape, dtype: tensor.dtype, leaf: { name, tensor } };
    this.#values.set(tensor, value);
    this.#leaves.push(value);
  }

  #execute(row: AnyOpRow, inputs: Inputs, attrs: object): Record<string, Tensor> {
    const { name: op } = row;
    const tracked = this.#trackedInputs(row, inputs);
    if (tracked.size === 0) return this.device.run(row, inputs, attrs);
    if (this.#state !== "open") throw refuseClosed(`${op} was given a tracked tensor`, this.#state);
    const gradient = gradRowOf(row);
    if (gradient === null) throw refuseNoGradientRow(op, [...tracked.keys()]);
    if (hasNoGradient(gradient)) {
      if (gradient.none !== INTEGER_OUTPUT.none)
        throw refuseNoGradient(op, [...tracked.keys()], gradient.none);
      return this.device.run(row, inputs, attrs);
    }
    for (const name of tracked.keys()) {
      const entry = gradient.inputs[name];
      if (hasNoGradient(entry)) throw refuseNoGradient(op, [name], entry.none);
    }
    return this.#runRecorded(row, inputs, attrs, tracked, gradient);
  }

  /** Tracked inputs by name. Throws for a call that would make the backward pass wrong. */
  #trackedInputs({ name: op, signature }: AnyOpRow, inputs: Inputs): Map<string, TrackedValue> {
    const tracked = new Map<string, TrackedValue>();
    for (const [i, { name, updated }] of signature.inputs.entries()) {
      const tensor = inputs[i];
      if (!tensor) continue;
      const value = this.#values.get(tensor);
      if (value) tracked.set(name, value);
      if (this.#gradients.has(tensor))
        throw refuseSecondOrder(op, `${name} is a gradient that this tape made`);
      if (updated && this.#saved.has(tensor)) {
        throw refuseInPlace(op, name, "is saved for the backward pass");
      }
    }
    return tracked;
  }

  #runRecorded(
    row: AnyOpRow,
    inputs: Inputs,
    attrs: object,
    tracked: ReadonlyMap<string, TrackedValue>,
    gradient: PullRow,
  ): Record<string, Tensor> {
    const { name: op, signature, attrs: defaults } = row;
    const plan = selectPulls(gradient, [...tracked.keys()]);
    const { saves } = plan;
    const residuals = signature.outputs.filter(({ residual, name }) => residual && saves.has(name));
    const outputs = this.device.run(
      row,
      inputs,
      attrs,
      residuals.map(({ name }) => name),
    );
    const saved = new Map<string, SavedTensor | null>();
    for (const [i, { name }] of signature.inputs.entries()) {
      const tensor = inputs[i];
      if (saves.has(name)) saved.set(name, tensor ? this.#keep(tensor) : null);
    }
    for (const { name, residual } of signature.outputs) {
      if (!saves.has(name)) continue;
      saved.set(name, residual ? this.#saved.adopt(outputs[name]) : this.#saved.keep(outputs[name], true));
    }
    // Rows with gradients have one primary output (pullRow in grad-row.ts refuses others).
    const y = outputs[signature.outputs[0].name];
    const output = { shape: y.shape, dtype: y.dtype, leaf: null };
    this.#values.set(y, output);
    this.#records.push({ op, attrs: { ...defaults, ...attrs }, inputs: tracked, output, plan, saved });
    return outputs;
  }

  #keep(tensor: Tensor): SavedTensor {
    return this.#saved.keep(tensor, this.isTracked(tensor));
  }

  #checkLoss(loss: Tensor, upstream: Tensor | null): TrackedValue {
    const root = this.#values.get(loss);
    if (root === undefined) throw refuseUntrackedLoss(loss);
    if (upstream === null) {
      if (loss.size !== 1) throw refuseLossShape(loss);
    } else if (
      !(upstream instanceof Tensor) ||
      !sameShape(upstream.shape, loss.shape) ||
      upstream.dtype !== loss.dtype
    ) {
      throw refuseUpstream(loss, upstream);
    }
    return root;
  }

  /** Throws `A-UNUSED` unless the loss depends on every leaf. */
  #checkReached(root: TrackedValue): void {
    const reached = valuesBehind(root, this.#records);
    const unused = this.#leaves.filter((value) => !reached.has(value));
    if (unused.length > 0) throw refuseUnused(unused.map(({ leaf }) => leaf!.name));
  }

  #release(by: string): void {
    this.#records.length = 0;
    this.#saved.clear(by);
  }
}

function isEntry(item: Tensor | readonly [string, Tensor]): item is readonly [string, Tensor] {
  return Array.isArray(item);
}
