import { type DType, isFloat } from "./dtype.ts";
import { roundToFloat16 } from "./float16.ts";
import type { AnyOpRow } from "./op.ts";
import type { Pick } from "./pick.ts";
import { type Shape, sizeOf } from "./shape.ts";

/** A drawn call of an op: operands in the order of the signature, null where left out. */
export interface OpCase {
  readonly inputs: readonly ({
    name: string;
    shape: Shape;
    dtype: DType;
    values: ArrayLike<number>;
  } | null)[];
  readonly attrs: object;
}

/** Values as the type holds them, so that every device and the reference start from the same numbers. */
function representable(values: ArrayLike<number>, dtype: DType): ArrayLike<number> {
  if (dtype === "f16") return Float64Array.from(values, roundToFloat16);
  return dtype === "f32" ? Float64Array.from(values, Math.fround) : values;
}

/** Draws a random legal case from a row's own ranges. Float inputs are of type `elem`. */
export function drawCase(row: AnyOpRow, pick: Pick, elem: DType = "f32"): OpCase {
  const { dims, attrs = {}, values = {}, omit = [] } = row.draw(pick);
  const inputs = row.signature.inputs.map(({ name, dims: letters, dtype: fixed }) => {
    if (omit.includes(name)) return null;
    const shape = letters.flatMap((letter) => dims[letter.replace("..", "")] as number | Shape);
    const dtype = fixed ?? elem;
    const size = sizeOf(shape);
    const draw = values[name] ?? ((n: number) => (isFloat(dtype) ? pick.normals(n) : pick.ints(n, 0, 1)));
    return { name, shape, dtype, values: representable(draw(size), dtype) };
  });
  return { inputs, attrs };
}
