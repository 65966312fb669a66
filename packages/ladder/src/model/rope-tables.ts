import { type Device, type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import type { Rope } from "./config-rope.ts";

/**
 * Angle per position of each of the headDim / 2 pairs, scaling applied (methods.md, 1).
 * Source: Su et al. 2021; llama3 scaling as transformers computes it.
 */
export function ropeFrequencies(rope: Rope, headDim: number): Float64Array {
  const half = headDim / 2;
  const frequencies = Float64Array.from({ length: half }, (_, i) => rope.theta ** (-i / half));
  const { scaling } = rope;
  if (scaling === null) return frequencies;
  if (scaling.type === "linear") return frequencies.map((f) => f / scaling.factor);
  const { factor, lowFreqFactor: low, highFreqFactor: high, originalMaxPositionEmbeddings: N } = scaling;
  return frequencies.map((f) => {
    const wavelength = (2 * Math.PI) / f;
    if (wavelength < N / high) return f;
    if (wavelength > N / low) return f / factor;
    const s = (N / wavelength - low) / (high - low);
    return (1 - s) * (f / factor) + s * f;
  });
}

/** Cosine and sine of positions `first .. first + count`, each f32[count, headDim / 2], built in double. */
export function ropeValues(
  rope: Rope,
  headDim: number,
  first: number,
  count: number,
): { cos: Float32Array; sin: Float32Array } {
  const frequencies = ropeFrequencies(rope, headDim);
  const half = frequencies.length;
  const cos = new Float32Array(count * half);
  const sin = new Float32Array(count * half);
  for (let t = 0; t < count; t++) {
    for (let i = 0; i < half; i++) {
      cos[t * half + i] = Math.cos((first + t) * frequencies[i]);
      sin[t * half + i] = Math.sin((first + t) * frequencies[i]);
    }
  }
  return { cos, sin };
}

/** Rope tables of one model part on a device, in workspace that the surrounding scope frees. */
export interface RopeTables {
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/**
 * Cosines and sines of positions first .. first + count: [T, headDim / 2] each for all rows, or [B, T, headDim / 2] where `first`
 * lists the first position of each row. Throws `L-ROPE` for an odd head size.
 */
export function ropeTables(
  device: Device,
  rope: Rope,
  headDim: number,
  first: number | readonly number[],
  count: number,
): RopeTables {
  if (headDim % 2 !== 0) {
    throw new SidenetError("L-ROPE", `rope rotates pairs, so head_dim ${headDim} has to be even.`);
  }
  const firsts = typeof first === "number" ? [first] : first;
  let rows: ReturnType<typeof ropeValues>[] | null = null;
  const table = (part: "cos" | "sin", label: string) => {
    const make = () => {
      rows ??= firsts.map((position) => ropeValues(rope, headDim, position, count));
      const values = new Float32Array((firsts.length * count * headDim) / 2);
      for (const [b, row] of rows.entries()) values.set(row[part], (b * count * headDim) / 2);
      return values;
    };
    const shape = typeof first === "number" ? [count, headDim / 2] : [firsts.length, count, headDim / 2];
    return device.tensor(make, shape, { label });
  };
  return { cos: table("cos", "rope cosines"), sin: table("sin", "rope sines") };
}

/** x[B,T,n,c] rotated by the positions of its tables, those of each row or of all. */
export function rotate(ops: Ops, x: Tensor, { cos, sin }: RopeTables): Tensor {
  if (cos.shape.length === 2) return ops.rope(x, cos, sin);
  const [B, T, n, c] = x.shape;
  // One row of B · T positions.
  const table = (one: Tensor) => ops.reshape(one, { shape: [B * T, c / 2] });
  const row = ops.reshape(x, { shape: [1, B * T, n, c] });
  return ops.reshape(ops.rope(row, table(cos), table(sin)), { shape: [B, T, n, c] });
}
