import { type DType, type HostArray, sizeBytes } from "./dtype.ts";
import { SidenetError } from "./errors.ts";
import type { DeviceProfile } from "./profile.ts";
import type { Shape } from "./shape.ts";
import {
  type Dims,
  type DimsOf,
  type InputArgs,
  type InputDimsOf,
  type InputNames,
  type InputSpecs,
  type NullableNames,
  type OutputNames,
  parseSignature,
  type ResultOf,
  type Signature,
  type TensorSpec,
} from "./signature.ts";
import type { Tensor } from "./tensor.ts";
import type { TestRandom } from "./test-random.ts";

/** The attributes of an op, by name. */
type Attrs = object;

/** `kernels/<file>.wgsl`, entry point after the slash. */
export type KernelEntry = `${string}/${string}`;

/** One dispatch. Names are those of the WGSL text; a missing or unknown name is an error. */
export interface KernelCall {
  /**
   * Bindings by variable name: tensors for storage, `KernelContext.texture`s for textures; `null` binds an empty buffer for
   * an operand that was left out.
   */
  readonly bind: Readonly<Record<string, Tensor | null>>;
  /** Fields of `struct Params`. */
  readonly params: Readonly<Record<string, number | boolean>>;
  /** Workgroups: a count, which is folded over two axes past 65,535, or three extents. */
  readonly grid: number | readonly [number, number, number];
  /** Values for `const NAME` or `override NAME` lines: tile sizes and the like, never extents. */
  readonly consts?: Readonly<Record<string, number>>;
  /** Bodies for one-line functions such as `fn apply(x: f32) -> f32 { return x; }` of the elementwise kernels. */
  readonly bodies?: Readonly<Record<string, string>>;
}

/** A range of rows. */
export interface RowRange {
  readonly start: number;
  readonly count: number;
}

/** No rows: a kernel that sums over rows or looks them up is dispatched over it too, since it writes the zeros. */
export const NO_ROWS: RowRange = { start: 0, count: 0 };

/** Splits 0 .. count into consecutive ranges of at most `max`. */
export function rangesOf(count: number, max: number): RowRange[] {
  const ranges: RowRange[] = [];
  for (let start = 0; start < count; start += max)
    ranges.push({ start, count: Math.min(max, count - start) });
  return ranges;
}

/** Preferences for the windows of `KernelContext.split`, followed where the binding limits allow. */
export interface WindowPreference {
  /** Upper limit on the bytes of a window, below what a binding holds. */
  readonly maxBytes?: number;
  /** The number of rows of every window but the last is a multiple of this power of two. */
  readonly multipleOf?: number;
}

/** What the kernel function of a row works with: dispatches, workspace, and windows of large tensors. */
export interface KernelContext {
  readonly profile: DeviceProfile;
  /** Dispatches a kernel. */
  run(kernel: KernelEntry, call: KernelCall): void;
  /** Workspace with undefined contents, freed when the op returns, or earlier by `dispose()`. */
  temp(shape: Shape, dtype?: DType): Tensor;
  /**
   * A copy of the tensor that kernels read as `texture_storage_2d<rgba32uint, read>`: elements in order, 16 bytes a texel,
   * `TEXTURE_WIDTH` texels a row (texture-layout.ts). On a software driver reading a texel costs a third of reading a vector
   * from a buffer. Workspace: freed when the op returns, or earlier by `dispose()`.
   */
  texture(tensor: Tensor): Tensor;
  /** Rows `start .. start + count` of the tensor as [rows, ...]; shares its memory. */
  rows(tensor: Tensor, rows: number, range: RowRange): Tensor;
  /**
   * Splits `rows` into ranges whose windows of every tensor, as [rows, size / rows], fit one binding and start at an aligned
   * offset. One range if all tensors fit whole. Throws `T-TOO-LARGE` if a single row does not fit.
   */
  split(rows: number, tensors: readonly (Tensor | null)[], preference?: WindowPreference): RowRange[];
}

/** Operands by name; optional ones and residuals are nullable. */
export type Io<Sig extends string, T> = {
  [K in InputNames<Sig> | OutputNames<Sig>]: K extends NullableNames<Sig> ? T | null : T;
};

/** Tolerance of a device's float32 result: `rel` times the largest magnitude in the tensor, plus `abs`. */
export interface Closeness {
  readonly rel: number;
  readonly abs?: number;
}

/** The numbers that an attribute may be, both limits included. Default: every number that is finite in f32. */
export interface NumberRange {
  readonly least?: number;
  readonly most?: number;
  readonly whole?: boolean;
  /** NaN is allowed too. */
  readonly nan?: boolean;
}

/** Infinity has a meaning too; NaN has none. */
export const UNBOUNDED: NumberRange = { least: Number.NEGATIVE_INFINITY, most: Number.POSITIVE_INFINITY };
/** A finite number, 0 or more. */
export const NOT_NEGATIVE: NumberRange = { least: 0 };
/** A whole number, 0 or more. */
export const COUNT: NumberRange = { least: 0, whole: true };
/** 32 bits, without a sign and with one. */
export const WORD: NumberRange = { least: 0, most: 2 ** 32 - 1, whole: true };
export const SIGNED_WORD: NumberRange = { least: -(2 ** 31), most: 2 ** 31 - 1, whole: true };

/** A random case for the property tests. */
export interface Draw<A> {
  /** Extents by letter; a run `N..` takes a shape. */
  readonly dims: Readonly<Record<string, number | Shape>>;
  readonly attrs?: Partial<A>;
  /** Values of an input by name; the default is normal with deviation 1. */
  readonly values?: Readonly<Record<string, (size: number) => ArrayLike<number>>>;
  /** Optional inputs to omit. */
  readonly omit?: readonly string[];
}

/** The result of an `infer` function. */
export interface Inferred {
  readonly outputs: readonly TensorSpec[];
  /** Added to the extents that inputs and outputs bind to the letters of the signature. */
  readonly dims?: Dims;
}

/** One row of the op table, as its file writes it. */
export interface OpDefinition<Sig extends string, A extends Attrs> {
  readonly name: string;
  /** One sentence with the formula; `docs/ops.md` and error texts show it. */
  readonly doc: string;
  readonly sig: Sig;
  /** Every attribute, with its default. */
  readonly attrs?: A;
  /** Attributes that may be null although their default is not. */
  readonly nullable?: readonly (keyof A & string)[];
  /** Ranges of number attributes. One without a range may be any finite number. */
  readonly ranges?: { readonly [K in keyof A]?: NumberRange };
  /** Specs of all outputs, and further extents, where the signature cannot give them. Throws `T-ATTR`. */
  infer?(inputs: InputSpecs<Sig>, attrs: A): Inferred;
  /** Describes what is wrong with extents that the signature accepts, or null. `has` says which optional inputs are given. */
  readonly check?: (dims: InputDimsOf<Sig>, attrs: A, has: (input: string) => boolean) => string | null;
  /** The output shares the memory of the input: no kernel, no copy. */
  readonly view?: boolean;
  /** The definition of the op, as plain loops over doubles. Outputs arrive zero-filled. `shapes` is for ops over axes. */
  readonly reference: (io: Io<Sig, HostArray>, dims: DimsOf<Sig>, attrs: A, shapes: Io<Sig, Shape>) => void;
  /** Dispatches the op on WebGPU. It has to write every element of every output. */
  readonly kernel: (k: KernelContext, io: Io<Sig, Tensor>, dims: DimsOf<Sig>, attrs: A) => void;
  /** WGSL texts of kernels that `kernel` dispatches and `@sidenet/kernels` lacks, by the name before the slash. */
  readonly sources?: Readonly<Record<string, string>>;
  /** Draws a random test case; its extents should lie on both sides of tile and workgroup sizes. */
  readonly draw: (pick: TestRandom) => Draw<A>;
  /** Float32 tolerance, with its derivation in a comment. f16 storage adds the rounding of inputs and outputs. */
  readonly close: Closeness | ((dims: DimsOf<Sig>) => Closeness);
  /** Floating-point operations; a multiply-add is 2. `has` says which residuals are made. */
  readonly flops: (dims: DimsOf<Sig>, attrs: A, has: (output: string) => boolean) => number;
}

/** A row of the op table, with its signature parsed. */
export interface OpRow<Sig extends string = string, A extends Attrs = Attrs>
  extends Omit<OpDefinition<Sig, A>, "attrs" | "infer"> {
  readonly signature: Signature;
  readonly attrs: A;
  /** Specs of all outputs, and further extents, where the signature cannot give them. Throws `T-ATTR`. */
  infer?(inputs: InputSpecs<Sig>, attrs: A): Inferred;
}

// One table holds rows of different signatures; callers recover the types through its keys.
/** A row of any op. */
// biome-ignore lint/suspicious/noExplicitAny: see above
export type AnyOpRow = OpRow<any, any>;

/** Throws `T-SIGNATURE` for operands that cannot be told apart, that no tensor can have, or whose extents nothing gives. */
function checkOperands({ text, inputs, outputs }: Signature, isInferred: boolean): void {
  const refuse = (problem: string) => new SidenetError("T-SIGNATURE", `"${text}": ${problem}.`);
  if (!text.includes("->")) throw refuse("there is no ->, which separates inputs from outputs");
  const bound = new Set(inputs.flatMap(({ letters }) => letters));
  const names = new Set<string>();
  for (const operand of [...inputs, ...outputs]) {
    const { name, dtype, dims, letters } = operand;
    if (names.has(name)) throw refuse(`two operands are named ${name}`);
    names.add(name);
    if (dtype !== null) sizeBytes(dtype, 0); // throws for a dtype that there is not
    if (dims.filter((dim) => dim.endsWith("..")).length > 1)
      throw refuse(`${name} has more than one run of axes`);
    const free = isInferred ? undefined : letters.find((letter) => !bound.has(letter));
    if (free !== undefined)
      throw refuse(`no input gives ${free} of ${name}, and there is no \`infer\` function`);
  }
}

/**
 * An op from its definition: a row for the op table, or for `ops.call`. Throws `T-SIGNATURE` for a signature that cannot be
 * parsed or whose operands it does not determine, and `T-DTYPE`.
 */
// biome-ignore lint/complexity/noBannedTypes: a row without attributes
export function defineOp<const Sig extends string, A extends Attrs = {}>(
  definition: OpDefinition<Sig, A>,
): OpRow<Sig, A> {
  const signature = parseSignature(definition.sig);
  checkOperands(signature, definition.infer !== undefined);
  return { ...definition, attrs: definition.attrs ?? ({} as A), signature };
}

type SigOf<R> = R extends OpRow<infer Sig, infer _> ? Sig : never;
/** The attributes of a row, by name. */
export type AttrsOfRow<R> = R extends OpRow<infer _, infer A> ? A : never;
/** Widens literal defaults: `{ eps: 1e-5 }` accepts any number. */
type Widen<V> = V extends number ? number : V extends boolean ? boolean : V;

/** No argument for a row without attributes: the type {} would accept anything, such as one operand too many. */
type AttrArgs<A> = [keyof A] extends [never] ? [] : [attrs?: { readonly [K in keyof A]?: Widen<A[K]> }];

/** The method of a row: its inputs in the order of the signature, then attributes. */
export type OpMethod<R> = (
  ...args: [...InputArgs<SigOf<R>, Tensor>, ...AttrArgs<AttrsOfRow<R>>]
) => ResultOf<SigOf<R>, Tensor>;

/** Method table of a set of rows. */
export type OpsOf<Table> = { readonly [K in keyof Table]: OpMethod<Table[K]> };

/** Typed names for gradient rules. */
export type InputNamesOf<R> = InputNames<SigOf<R>>;
/** Names of a row's outputs. */
export type OutputNamesOf<R> = OutputNames<SigOf<R>>;
