/** Operands that kernels read in windows of rows: tensors, or weights whose rows are decoded a panel at a time. */
import { type KernelContext, type RowRange, rangesOf, type WindowPreference } from "../op.ts";
import type { Tensor } from "../tensor.ts";

/** An operand whose rows are produced a panel at a time, such as a quantized weight. */
export interface Panels {
  /** Maximum number of rows of a panel. */
  readonly rows: number;
  /** Writes these rows to memory that the next call reuses. */
  readonly make: (range: RowRange) => Tensor;
}

export const isPanels = (x: Tensor | Panels): x is Panels => "make" in x;

/** Ranges of the rows of x: of panels, or such that windows of x and of `others` fit a binding. */
export const splitOperand = (
  k: KernelContext,
  x: Tensor | Panels,
  rows: number,
  others: readonly Tensor[] = [],
  preference: WindowPreference = {},
): RowRange[] => (isPanels(x) ? rangesOf(rows, x.rows) : k.split(rows, [...others, x], preference));

/** A window of x; if it is a panel, it is valid until the next call. */
export const operandWindow = (k: KernelContext, x: Tensor | Panels, rows: number, range: RowRange): Tensor =>
  isPanels(x) ? x.make(range) : k.rows(x, rows, range);
