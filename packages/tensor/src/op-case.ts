import { type DType, isFloat } from "./dtype.ts";
import { roundToFloat16 } from "./float16.ts";
import type { AnyOpRow } from "./op.ts";
import { type Shape, sizeOf } from "./shape.ts";
import type { TestRandom } from "./test-random.ts";

/** A random call of an op: operands in the order of the signature, null if absent. */
export interface OpCase {
  readonly inputs: readonly ({
    name: string;
    shape: Shape;
    dtype: DType;
    values: ArrayLike<number>;
  } | null)[];
  readonly attrs: object;
}

/** Rounds values to the dtype, so that every device and the reference start from the same numbers. */
function representable(values: ArrayLike<number>, dtype: DType): ArrayLike<number> {
  if (dtype === "f16") return Float64Array.from(values, roundToFloat16);
  return dtype === "f32" ? Float64Array.from(values, Math.fround) : values;
}

/** Default values: normal numbers, integers of the whole range, or masks. */
function drawValues(pick: TestRandom, dtype: DType, size: number): ArrayLike<number> {
  if (isFloat(dtype)) return pick.normals(size);
  if (dtype === "i32") return Float64Array.from({ length: size }, () => pick.int(-(2 ** 31), 2 ** 31 - 1));
  if (dtype === "u32") return Float64Array.from({ length: size }, () => pick.int(0, 2 ** 32 - 1));
  return pick.ints(size, 0, 1);
}

/** Draws a random valid case by the row's `draw`. Inputs have dtype `elem` where the signature allows it, else f32. */
export function drawCase(row: AnyOpRow, pick: TestRandom, elem: DType = "f32"): OpCase {
  const { dims, attrs = {}, values = {}, omit = [] } = row.draw(pick);
  const inputs = row.signature.inputs.map(({ name, dims: letters, dtype: fixed, accepts }) => {
    if (omit.includes(name)) return null;
    const shape = letters.flatMap((letter) => dims[letter.replace("..", "")] as number | Shape);
    const dtype = fixed ?? (accepts.includes(elem) ? elem : "f32");
    const size = sizeOf(shape);
    const draw = values[name] ?? ((n: number) => drawValues(pick, dtype, n));
    return { name, shape, dtype, values: representable(draw(size), dtype) };
  });
  return { inputs, attrs };
}
