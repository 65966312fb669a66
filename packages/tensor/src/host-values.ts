import type { DType } from "./dtype.ts";
import { SidenetError } from "./errors.ts";

/** What each integer type holds, and the arrays of which every element is that. */
const INTEGERS: Partial<
  Record<
    DType,
    { holds(x: number): boolean; range: string; array: { [Symbol.hasInstance](x: unknown): boolean } }
  >
> = {
  i32: { holds: (x) => (x | 0) === x, range: "-2^31 to 2^31 - 1", array: Int32Array },
  u32: { holds: (x) => x >>> 0 === x, range: "0 to 2^32 - 1", array: Uint32Array },
  u8: { holds: (x) => (x & 255) === x, range: "0 to 255", array: Uint8Array },
};

const found = (value: unknown): string =>
  typeof value === "string"
    ? `"${value.slice(0, 40)}"`
    : Array.isArray(value)
      ? "an array"
      : typeof value === "object" && value !== null
        ? "an object"
        : `${value}`;

/**
 * Throws `T-VALUE` unless the values are a typed array or an array (or array-like) of numbers that the type holds: plain JavaScript
 * may pass anything, and a typed array would convert it to NaN or 0, or take the lowest bits.
 */
export function checkValues(values: ArrayLike<number>, dtype: DType, what: string): void {
  checkNumbers(values, what);
  const type = INTEGERS[dtype];
  if (type === undefined || values instanceof type.array) return;
  for (let i = 0; i < values.length; i++) {
    if (type.holds(values[i])) continue;
    throw new SidenetError(
      "T-VALUE",
      `${what}: value ${i} is ${values[i]}, and ${dtype} holds whole numbers from ${type.range}.`,
    );
  }
}

function checkNumbers(values: ArrayLike<number>, what: string): void {
  const isTyped = ArrayBuffer.isView(values) && !(values instanceof DataView);
  if (isTyped && typeof values[0] !== "bigint") return;
  const isList = typeof values === "object" && values !== null && typeof values.length === "number";
  if (!isList) {
    throw new SidenetError(
      "T-VALUE",
      `${what}: the values are ${found(values)}, wanted an array of numbers, row by row. For a tensor without values: empty().`,
    );
  }
  for (let i = 0; i < values.length; i++) {
    if (typeof values[i] === "number") continue;
    const cure = Array.isArray(values[i])
      ? " Rows follow one another in one array: values.flat(Infinity)."
      : "";
    throw new SidenetError("T-VALUE", `${what}: value ${i} is ${found(values[i])}, wanted a number.${cure}`);
  }
}
