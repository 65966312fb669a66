import { SidenetError } from "./errors.ts";

const found = (value: unknown): string =>
  typeof value === "string"
    ? `"${value.slice(0, 40)}"`
    : Array.isArray(value)
      ? "an array"
      : typeof value === "object" && value !== null
        ? "an object"
        : `${value}`;

/**
 * Throws `T-VALUE` unless the values are a typed array or an array (or array-like) of numbers: plain JavaScript may pass
 * anything, and a typed array would convert it to NaN or 0.
 */
export function checkValues(values: ArrayLike<number>, what: string): void {
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
