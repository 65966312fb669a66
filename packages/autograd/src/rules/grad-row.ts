/**
 * Gradient rows: what each input of an op needs for its own gradient, and how that gradient is made. A row is typed
 * against its op: an input left out, a misspelt save or a wrong attribute does not compile.
 */
import type {
  AttrsOfRow,
  DType,
  InputNamesOf,
  OpName,
  Ops,
  OpTable,
  OutputNamesOf,
  Shape,
  Tensor,
} from "@sidenet/tensor";

type InputName<K extends OpName> = InputNamesOf<OpTable[K]> & string;
/** What a rule may save: an input, an output, or a residual, which the forward pass then makes. */
type SaveName<K extends OpName> = InputName<K> | (OutputNamesOf<OpTable[K]> & string);

type Operands<K extends OpName> = Parameters<OpTable[K]["reference"]>[0];
/** Null where the call left an optional input out. */
type SavedOperand<K extends OpName, N> =
  N extends InputName<K>
    ? null extends Operands<K>[N & keyof Operands<K>]
      ? Tensor | null
      : Tensor
    : Tensor;
type SavedOperands<K extends OpName, N extends SaveName<K>> = { readonly [S in N]: SavedOperand<K, S> };

/** Why an op or an input has no gradient. Only an integer output may be computed from tracked values all the same. */
export type NoGradientReason =
  | "integer output"
  | "integer input"
  | "in place"
  | "gradients of gradients are not supported"
  | "a table of constants"
  | "a quantized weight"
  | "part of the optimizer";

/** An op without gradients, and why. */
export interface NoGradient {
  readonly none: NoGradientReason;
}

export const IN_PLACE: NoGradient = { none: "in place" };
export const INTEGER_OUTPUT: NoGradient = { none: "integer output" };
export const SECOND_ORDER: NoGradient = { none: "gradients of gradients are not supported" };
export const QUANTIZED: NoGradient = { none: "a quantized weight" };
export const OPTIMIZER: NoGradient = { none: "part of the optimizer" };

/** What a rule may know of the call besides tensors. */
export interface PullContext<A> {
  /** All attributes, defaults filled in. */
  readonly attrs: A;
  /** Shape of the input, and so of its gradient. */
  readonly shape: Shape;
  /** Dtype that the gradient will have: f32 for a leaf, the value's own otherwise. A rule that sums widens first. */
  readonly dtype: DType;
}

/** Gradient of one input: `saves` from the forward pass, `pull` from the gradient dy of the output. It only calls ops. */
interface InputRule<K extends OpName, S extends readonly SaveName<K>[]> {
  readonly saves: S;
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: SavedOperands<K, S[number]>,
    context: PullContext<AttrsOfRow<OpTable[K]>>,
  ) => Tensor;
}

/** Gradients of several inputs that share their work. Used instead of theirs when all of these inputs are tracked. */
interface JointRule<K extends OpName, I extends readonly InputName<K>[], S extends readonly SaveName<K>[]> {
  readonly inputs: I;
  readonly saves: S;
  /** One gradient for each of `inputs`, in that order. */
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: SavedOperands<K, S[number]>,
    attrs: AttrsOfRow<OpTable[K]>,
  ) => { readonly [P in keyof I]: Tensor };
}

/** A rule as the tape uses it: names are text, one or several inputs alike. */
export interface Pull {
  readonly inputs: readonly string[];
  readonly saves: readonly string[];
  /** The gradients are new memory, though `ops` did not make them. */
  readonly fresh?: boolean;
  /** One context, and one gradient, for each of `inputs`. */
  readonly run: (
    ops: Ops,
    dy: Tensor,
    saved: Readonly<Record<string, Tensor | null>>,
    contexts: readonly PullContext<object>[],
  ) => readonly Tensor[];
}

/** The row of an op that has gradients. */
export interface PullRow<K extends OpName = OpName> {
  readonly op: K;
  readonly inputs: Readonly<Record<string, Pull | NoGradient>>;
  readonly joint: Pull | null;
}

/** The gradients of one op: a rule for each input, or the reason why there is none. */
export type GradRow<K extends OpName = OpName> = NoGradient | PullRow<K>;

export const hasNoGradient = (entry: object): entry is NoGradient => "none" in entry;

/** Defines the row of a differentiable op: an entry for each input, and a rule for those that share work. */
export function gradRow<
  K extends OpName,
  const S extends Record<InputName<K>, readonly SaveName<K>[]>,
  const I extends readonly InputName<K>[] = [],
  const J extends readonly SaveName<K>[] = [],
>(
  op: K,
  inputs: { readonly [N in keyof S]: InputRule<K, S[N]> | NoGradient },
  joint?: JointRule<K, I, J>,
): PullRow<K> {
  // The types above have done their work; the tape goes by the names in the rows.
  type AnyRule = { saves: readonly string[]; pull: (...args: unknown[]) => Tensor };
  const entries = Object.entries(inputs as Record<string, AnyRule | NoGradient>).map(([name, entry]) => {
    if (hasNoGradient(entry)) return [name, entry] as const;
    const run: Pull["run"] = (ops, dy, saved, [context]) => [entry.pull(ops, dy, saved, context)];
    return [name, { inputs: [name], saves: entry.saves, run }] as const;
  });
  const pullJoint = joint?.pull as ((...args: unknown[]) => readonly Tensor[]) | undefined;
  return {
    op,
    inputs: Object.fromEntries(entries),
    joint:
      joint && pullJoint
        ? {
            inputs: joint.inputs,
            saves: joint.saves,
            run: (ops, dy, saved, [{ attrs }]) => pullJoint(ops, dy, saved, attrs),
          }
        : null,
  };
}

/** The rules that give the gradients of the `tracked` inputs: the joint one when all of its inputs are among them. */
export function selectPulls(row: PullRow, tracked: readonly string[]): Pull[] {
  const joint = row.joint?.inputs.every((name) => tracked.includes(name)) ? row.joint : null;
  const single = tracked.filter((name) => !joint?.inputs.includes(name));
  const pulls = single.map((name) => row.inputs[name]).filter((entry) => !hasNoGradient(entry));
  return joint ? [...(pulls as Pull[]), joint] : (pulls as Pull[]);
}
