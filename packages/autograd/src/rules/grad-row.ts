/**
 * Gradient rows: for each input of an op, what its gradient needs from the forward pass, and how it is computed from the
 * gradient of the output (a vector-Jacobian product). A row is typed against its op: a missing input, a misspelt save or a
 * wrong attribute does not compile.
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
/** What a rule may save: an input, an output, or a residual, which the forward pass makes only when a rule saves it. */
type SaveName<K extends OpName> = InputName<K> | (OutputNamesOf<OpTable[K]> & string);

type Operands<K extends OpName> = Parameters<OpTable[K]["reference"]>[0];
/** Null for an optional input that the call left out. */
type SavedOperand<K extends OpName, N> =
  N extends InputName<K>
    ? null extends Operands<K>[N & keyof Operands<K>]
      ? Tensor | null
      : Tensor
    : Tensor;
type SavedOperands<K extends OpName, N extends SaveName<K>> = { readonly [S in N]: SavedOperand<K, S> };

/** Why an op or an input has no gradient. An op with integer output takes tracked inputs; the others throw for them. */
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

/** What a rule is given of the call besides tensors. */
export interface PullContext<A> {
  /** All attributes, defaults filled in. */
  readonly attrs: A;
  /** Shape of the input, and so of its gradient. */
  readonly shape: Shape;
  /** Dtype of the input's gradient: f32 for a leaf, the input's own otherwise. A rule that sums casts to it first. */
  readonly dtype: DType;
}

/** The gradient of one input: `pull` computes it by ops from dy, the output's gradient, and the tensors named in `saves`. */
interface InputRule<K extends OpName, S extends readonly SaveName<K>[]> {
  readonly saves: S;
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: SavedOperands<K, S[number]>,
    context: PullContext<AttrsOfRow<OpTable[K]>>,
  ) => Tensor;
}

/** Gradients of several inputs at once, used instead of their single rules when all of them are tracked. */
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

/** A rule as the tape uses it, for one or several inputs, without the types of its op. */
export interface Pull {
  readonly inputs: readonly string[];
  readonly saves: readonly string[];
  /** The gradients are in new memory even though `ops` did not make them. */
  readonly isFresh?: boolean;
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

/** Defines the row of a differentiable op: an entry for each input, and perhaps a joint rule for inputs that share work. */
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
  // The parameter types have checked the row; the tape needs only the names in it.
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
