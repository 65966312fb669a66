/**
 * Gradient rows: for each input of an op, what its gradient needs from the forward pass, and how it is computed from the
 * gradient of the output (a vector-Jacobian product). A row is typed against its op: a missing input, a misspelt save or a
 * wrong attribute does not compile.
 */
import {
  type AnyOpRow,
  type AttrsOfRow,
  type DType,
  type InputNamesOf,
  type OpName,
  type Ops,
  type OpTable,
  type OutputNamesOf,
  rowOf,
  type Shape,
  SidenetError,
  type Tensor,
} from "@sidenet/tensor";

type InputName<R extends AnyOpRow> = InputNamesOf<R> & string;
/** What a rule may save: an input, an output, or a residual, which the forward pass makes only when a rule saves it. */
type SaveName<R extends AnyOpRow> = InputName<R> | (OutputNamesOf<R> & string);

type Operands<R extends AnyOpRow> = Parameters<R["reference"]>[0];
/** The type of a saved operand: nullable for an optional input, which a call may leave out. */
type SavedOperand<R extends AnyOpRow, N> =
  N extends InputName<R>
    ? null extends Operands<R>[N & keyof Operands<R>]
      ? Tensor | null
      : Tensor
    : Tensor;
type SavedOperands<R extends AnyOpRow, N extends SaveName<R>> = { readonly [S in N]: SavedOperand<R, S> };

/** An op or an input without gradients, and why, in words for messages. */
export interface NoGradient {
  /** An op with "integer output" takes tracked inputs; all others throw for them. */
  readonly none: string;
}

export const IN_PLACE: NoGradient = { none: "in place" };
export const INTEGER_INPUT: NoGradient = { none: "integer input" };
export const INTEGER_OUTPUT: NoGradient = { none: "integer output" };
export const SECOND_ORDER: NoGradient = { none: "gradients of gradients are not supported" };
export const QUANTIZED: NoGradient = { none: "a quantized weight" };
export const OPTIMIZER: NoGradient = { none: "part of the optimizer" };

/** The attributes, shape and dtype that a rule is given besides tensors. */
export interface PullContext<A> {
  /** All attributes, defaults filled in. */
  readonly attrs: A;
  /** Shape of the input, and so of its gradient. */
  readonly shape: Shape;
  /** Dtype of the input's gradient: f32 for a leaf, the input's own otherwise. A rule that sums casts to it first. */
  readonly dtype: DType;
}

/** The gradient of one input: `pull` computes it by ops from dy, the output's gradient, and the tensors named in `saves`. */
export interface InputRule<R extends AnyOpRow, S extends readonly SaveName<R>[]> {
  /** Inputs, outputs and residuals that are kept for `pull`. */
  readonly saves: S;
  /** See `Pull`. */
  readonly readsF16?: boolean;
  /** The gradient, of the shape and dtype that `context` gives. */
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: SavedOperands<R, S[number]>,
    context: PullContext<AttrsOfRow<R>>,
  ) => Tensor;
}

/** Gradients of several inputs at once, used instead of their single rules when all of them are tracked. */
export interface JointRule<
  R extends AnyOpRow,
  I extends readonly InputName<R>[],
  S extends readonly SaveName<R>[],
> {
  readonly inputs: I;
  readonly saves: S;
  /** See `Pull`. */
  readonly readsF16?: boolean;
  /** One gradient for each of `inputs`, in that order. */
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: SavedOperands<R, S[number]>,
    attrs: AttrsOfRow<R>,
  ) => { readonly [P in keyof I]: Tensor };
}

/** A rule as the tape uses it, for one or several inputs, without the types of its op. */
export interface Pull {
  readonly inputs: readonly string[];
  readonly saves: readonly string[];
  /**
   * Whether what was kept in f16 may be given as it is: only where that changes no bit of the gradient, because it is no op's first
   * operand, which decides the type of a result. Otherwise it is widened to f32 first.
   */
  readonly readsF16?: boolean;
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
export interface PullRow<K extends string = string> {
  readonly op: K;
  readonly inputs: Readonly<Record<string, Pull | NoGradient>>;
  readonly joint: Pull | null;
}

/** The gradients of one op: a rule for each input, or the reason why there is none. */
export type GradRow<K extends string = string> = NoGradient | PullRow<K>;

export const hasNoGradient = (entry: object): entry is NoGradient => "none" in entry;

/** Defines the row of a differentiable op of the table: an entry for each input, and perhaps a joint rule for inputs that share work. */
export function gradRow<
  K extends OpName,
  const S extends Record<InputName<OpTable[K]>, readonly SaveName<OpTable[K]>[]>,
  const I extends readonly InputName<OpTable[K]>[] = [],
  const J extends readonly SaveName<OpTable[K]>[] = [],
>(
  op: K,
  inputs: { readonly [N in keyof S]: InputRule<OpTable[K], S[N]> | NoGradient },
  joint?: JointRule<OpTable[K], I, J>,
): PullRow<K> {
  return pullRow(op, rowOf(op), inputs, joint);
}

/** An op outside the table with its gradients. */
export interface WithGradient {
  readonly gradient: GradRow;
}

/** Whether a row was given gradients by `withGradient`. */
export const hasGradient = <R extends object>(row: R): row is R & WithGradient => "gradient" in row;

/**
 * An op outside the table together with its gradients, for `ops.call`: an entry for each input, and perhaps a joint rule for
 * inputs that share work. Throws `A-RULE` unless the op has one output, residuals aside, and the names are those of its operands.
 */
export function withGradient<
  R extends AnyOpRow,
  const S extends Record<InputName<R>, readonly SaveName<R>[]>,
  const I extends readonly InputName<R>[] = [],
  const J extends readonly SaveName<R>[] = [],
>(
  row: R,
  inputs: { readonly [N in keyof S]: InputRule<R, S[N]> | NoGradient },
  joint?: JointRule<R, I, J>,
): R & WithGradient {
  return { ...row, gradient: pullRow(row.name, row, inputs, joint) };
}

// The parameter types have checked the row; the tape needs only the names in it.
type AnyRule = { saves: readonly string[]; readsF16?: boolean; pull: (...args: unknown[]) => Tensor };
type AnyJointRule = Omit<AnyRule, "pull"> & { inputs: readonly string[]; pull: unknown };

function pullRow<K extends string>(
  op: K,
  { signature }: AnyOpRow,
  inputs: object,
  joint: AnyJointRule | undefined,
): PullRow<K> {
  const outputs = signature.outputs.filter(({ residual }) => !residual).length;
  if (outputs !== 1) {
    throw new SidenetError("A-RULE", `${op} has ${outputs} outputs. An op with gradients has one.`);
  }
  checkNames(op, signature, inputs as Record<string, AnyRule | NoGradient>, joint);
  const entries = Object.entries(inputs as Record<string, AnyRule | NoGradient>).map(([name, entry]) => {
    if (hasNoGradient(entry)) return [name, entry] as const;
    const run: Pull["run"] = (ops, dy, saved, [context]) => [entry.pull(ops, dy, saved, context)];
    const { saves, readsF16 = false } = entry;
    return [name, { inputs: [name], saves, readsF16, run }] as const;
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
            readsF16: joint.readsF16 ?? false,
            run: (ops, dy, saved, [{ attrs }]) => pullJoint(ops, dy, saved, attrs),
          }
        : null,
  };
}

/** What the types say of a row, for callers without types. Throws `A-RULE`. */
function checkNames(
  op: string,
  { text, inputs, outputs }: AnyOpRow["signature"],
  entries: Readonly<Record<string, AnyRule | NoGradient>>,
  joint: AnyJointRule | undefined,
): void {
  const refuse = (problem: string) =>
    new SidenetError("A-RULE", `the gradients of ${op} ${problem}. Its operands are ${text}`);
  const names = inputs.map(({ name }) => name);
  const missing = names.filter((name) => !Object.hasOwn(entries, name));
  if (missing.length > 0) throw refuse(`have no entry for ${missing.join(", ")}`);
  const rules = Object.values(entries).filter((entry) => !hasNoGradient(entry)) as AnyRule[];
  const saves = [...rules, ...(joint ? [joint] : [])].flatMap((rule) => rule.saves);
  const given = [...Object.keys(entries), ...(joint?.inputs ?? [])];
  const unknown =
    given.find((name) => !names.includes(name)) ??
    saves.find((name) => !names.includes(name) && !outputs.some((output) => output.name === name));
  if (unknown !== undefined) throw refuse(`name an operand "${unknown}", which it does not have`);
}

/** The rules that give the gradients of some inputs, and what they need. */
export interface PullPlan {
  readonly pulls: readonly Pull[];
  /** Inputs, outputs and residuals that a rule needs. */
  readonly saves: ReadonlySet<string>;
  /** Those of them that a rule needs in f32 even if they were kept in f16. */
  readonly wide: ReadonlySet<string>;
}

/** The plan of given rules. */
export function planOf(pulls: readonly Pull[]): PullPlan {
  const saves = new Set(pulls.flatMap((pull) => pull.saves));
  const wide = new Set(pulls.flatMap((pull) => (pull.readsF16 ? [] : pull.saves)));
  return { pulls, saves, wide };
}

/** Plans by the tracked inputs: a step records few kinds of ops, each many times. */
const plans = new WeakMap<PullRow, Map<string, PullPlan>>();

/** The plan for the gradients of the `tracked` inputs: with the joint rule when all of its inputs are among them. */
export function selectPulls(row: PullRow, tracked: readonly string[]): PullPlan {
  const ofRow = plans.get(row) ?? new Map<string, PullPlan>();
  plans.set(row, ofRow);
  const key = tracked.join();
  const known = ofRow.get(key);
  if (known) return known;
  const joint = row.joint?.inputs.every((name) => tracked.includes(name)) ? row.joint : null;
  const single = tracked.filter((name) => !joint?.inputs.includes(name));
  const pulls = single.map((name) => row.inputs[name]).filter((entry) => !hasNoGradient(entry)) as Pull[];
  const plan = planOf(joint ? [...pulls, joint] : pulls);
  ofRow.set(key, plan);
  return plan;
}
