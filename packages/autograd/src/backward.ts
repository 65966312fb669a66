/** The backward pass over the records of a tape, from the last to the first. */
import { type Device, sameShape, Tensor } from "@sidenet/tensor";
import { GradientSlots, gradientDtype, type TrackedValue } from "./gradient-slots.ts";
import { refuseChanged, refuseGradient } from "./refusals.ts";
import { RuleOps } from "./rule-ops.ts";
import type { PullPlan } from "./rules/grad-row.ts";
import { isChanged, type SavedTensor, type SavedTensors } from "./saved-tensors.ts";

/** Gradient by trainable tensor: f32, of the tensor's shape, in memory of its own. */
export type Gradients = Map<Tensor, Tensor>;

/** One op on the tape: its tracked inputs, its output, and the rules that turn the output's gradient into the inputs'. */
export interface RecordedOp {
  /** The name of the op, "checkpoint", or "custom NAME" for a `customGradient`. */
  readonly op: string;
  readonly attrs: object;
  /** Tracked inputs by name. */
  readonly inputs: ReadonlyMap<string, TrackedValue>;
  readonly output: TrackedValue;
  readonly plan: PullPlan;
  /** Saved tensors by operand name; null for an optional input that was left out. */
  readonly saved: ReadonlyMap<string, SavedTensor | null>;
}

/** Every value that `root` was computed from, itself included. */
export function valuesBehind(root: TrackedValue, records: readonly RecordedOp[]): ReadonlySet<TrackedValue> {
  const reached = new Set([root]);
  for (const { inputs, output } of [...records].reverse()) {
    if (reached.has(output)) for (const value of inputs.values()) reached.add(value);
  }
  return reached;
}

/** Throws `A-CHANGED` if a saved tensor was changed in place since. */
function refuseChanges({ op, inputs, saved }: RecordedOp): void {
  for (const [name, tensor] of saved) {
    if (!tensor || !isChanged(tensor)) continue;
    const { source } = tensor.kept;
    const leaf = [...inputs.values()].find((value) => value.leaf?.tensor === source)?.leaf;
    throw refuseChanged(op, name, leaf?.name ?? `${source}`);
  }
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

  /** Gradients of the leaves that `root` depends on, in the innermost scope. `upstream` is the gradient of `root`; null is 1. */
  run(
    root: TrackedValue,
    upstream: Tensor | null,
    records: RecordedOp[],
    leaves: readonly TrackedValue[],
  ): Gradients {
    const device = this.#device;
    try {
      // The scope frees the intermediate tensors if a rule throws.
      return device.scope(() => {
        const seed = upstream
          ? device.retain(upstream)
          : device.tensor([1], root.shape, { dtype: root.dtype, label: "upstream" });
        this.#slots.add([root], [{ gradient: seed, owned: upstream === null }]);
        for (let record = records.pop(); record; record = records.pop()) this.#consume(record);
        return this.#collect(leaves);
      });
    } finally {
      this.#slots.dispose();
    }
  }

  /** Adds the contribution of one record to the gradients of its inputs, then frees what the record saved. */
  #consume(record: RecordedOp): void {
    const dy = this.#slots.take(record.output);
    try {
      if (dy) {
        refuseChanges(record);
        this.#saved.open(record.saved, record.plan.wide, (tensors) => this.#pull(record, dy, tensors));
      }
    } finally {
      dy?.dispose("the backward pass after its last use");
      for (const saved of record.saved.values()) if (saved) this.#saved.release(saved);
    }
  }

  #pull(record: RecordedOp, dy: Tensor, saved: Readonly<Record<string, Tensor | null>>): void {
    for (const { inputs, run, isFresh = false } of record.plan.pulls) {
      const values = inputs.map((name) => record.inputs.get(name)!);
      const contexts = values.map((value) => ({
        attrs: record.attrs,
        shape: value.shape,
        dtype: gradientDtype(value),
      }));
      const gradients = this.#device.scope(
        () => {
          const pulled = run(this.#rules.ops, dy, saved, contexts);
          for (const [i, { shape }] of values.entries()) {
            const gradient: unknown = pulled[i];
            if (gradient instanceof Tensor && sameShape(gradient.shape, shape)) continue;
            throw refuseGradient(record.op, inputs[i], gradient, shape);
          }
          return pulled.map((gradient, i) => {
            const { made, fresh } = isFresh ? { made: true, fresh: true } : this.#rules.take(gradient);
            // A rule may give two inputs one memory, which accumulating for either would change for both.
            const isShared = pulled.some((other, j) => j !== i && other.memoryKey === gradient.memoryKey);
            return { gradient: made ? gradient : this.#device.retain(gradient), owned: fresh && !isShared };
          });
        },
        { label: `the gradient of ${record.op}` },
      );
      this.#slots.add(values, gradients);
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
