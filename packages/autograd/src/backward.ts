/** The backward pass over the records of a tape, from the last to the first. */
import type { Device, OpName, Ops, Tensor } from "@sidenet/tensor";
import { GradientSlots, gradientDtype, type TrackedValue } from "./gradient-slots.ts";
import { RuleOps } from "./rule-ops.ts";
import type { Pull } from "./rules/grad-row.ts";
import type { SavedTensor, SavedTensors } from "./saved-tensors.ts";

/** Gradient by trainable tensor: f32, of the tensor's shape, in memory of its own. */
export type Gradients = Map<Tensor, Tensor>;

/** What a record stands for: an op, or a function that is recorded as a whole. */
export type RecordName = OpName | "checkpoint" | `custom ${string}`;

/** The backward pass of a function that is recorded as a whole. */
export interface WholePull {
  readonly saves: readonly Tensor[];
  /** Its gradients are new memory, though the ops it was given did not make them. */
  readonly isFresh: boolean;
  /** Gradients of the tracked inputs, given by their places, from the gradient dy of the output. */
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: readonly Tensor[],
    tracked: readonly number[],
  ) => readonly Tensor[];
}

/** What a tape remembers of an op: which values it led from and to, and how gradients go back. */
export interface Entry {
  readonly op: RecordName;
  readonly attrs: object;
  /** Tracked inputs by name. */
  readonly inputs: ReadonlyMap<string, TrackedValue>;
  readonly output: TrackedValue;
  readonly pulls: readonly Pull[];
  /** By operand name; null for an optional input that was left out. */
  readonly saved: ReadonlyMap<string, SavedTensor | null>;
}

/** Every value that `root` was computed from, itself included. */
export function valuesBehind(root: TrackedValue, entries: readonly Entry[]): ReadonlySet<TrackedValue> {
  const reached = new Set([root]);
  for (const { inputs, output } of [...entries].reverse()) {
    if (reached.has(output)) for (const value of inputs.values()) reached.add(value);
  }
  return reached;
}

/** One backward pass: it empties the list of records, and frees what each has saved as it goes. */
export class BackwardPass {
  readonly #device: Device;
  readonly #saved: SavedTensors;
  readonly #slots: GradientSlots;
  readonly #rules: RuleOps;

  constructor(device: Device, saved: SavedTensors) {
    this.#device = device;
    this.#saved = saved;
    this.#slots = new GradientSlots(device);
    this.#rules = new RuleOps(device);
  }

  /** Gradients of the leaves that `root` depends on, of the innermost scope; `upstream` is that of `root`, null: 1. */
  run(
    root: TrackedValue,
    upstream: Tensor | null,
    entries: Entry[],
    leaves: readonly TrackedValue[],
  ): Gradients {
    const device = this.#device;
    try {
      // The scope frees, after an error, what was made on the way.
      return device.scope(() => {
        const seed = upstream
          ? device.retain(upstream)
          : device.tensor([1], root.shape, { dtype: root.dtype, label: "upstream" });
        this.#slots.add(root, seed, upstream === null);
        for (let entry = entries.pop(); entry; entry = entries.pop()) this.#consume(entry);
        return this.#collect(leaves);
      });
    } finally {
      this.#slots.dispose();
    }
  }

  /** Turns the gradient of one record's output into contributions to its inputs', and frees what the record saved. */
  #consume(entry: Entry): void {
    const dy = this.#slots.take(entry.output);
    try {
      if (dy) {
        const names = [...entry.saved.keys()];
        this.#saved.open([...entry.saved.values()], (tensors) =>
          this.#pull(entry, dy, Object.fromEntries(names.map((name, i) => [name, tensors[i]]))),
        );
      }
    } finally {
      dy?.dispose("the backward pass, which had used it");
      for (const saved of entry.saved.values()) if (saved) this.#saved.release(saved);
    }
  }

  #pull(entry: Entry, dy: Tensor, saved: Record<string, Tensor | null>): void {
    for (const { inputs, run, fresh: isNew = false } of entry.pulls) {
      const values = inputs.map((name) => entry.inputs.get(name)!);
      const contexts = values.map((value) => ({
        attrs: entry.attrs,
        shape: value.shape,
        dtype: gradientDtype(value),
      }));
      const gradients = this.#device.scope(
        () =>
          run(this.#rules.ops, dy, saved, contexts).map((gradient) => {
            const { made, fresh } = isNew ? { made: true, fresh: true } : this.#rules.take(gradient);
            return { gradient: made ? gradient : this.#device.retain(gradient), fresh };
          }),
        { label: `the gradient of ${entry.op}` },
      );
      this.#slots.addAll(values, gradients);
    }
  }

  #collect(leaves: readonly TrackedValue[]): Gradients {
    const gradients: Gradients = new Map();
    for (const value of leaves) {
      const gradient = this.#slots.take(value);
      if (gradient) gradients.set(value.leaf!.tensor, gradient);
    }
    return gradients;
  }
}
