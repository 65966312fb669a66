import { type Device, SidenetError, type Tensor } from "@sidenet/tensor";
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

/** Cosines and sines of positions first .. first + count, [count, headDim / 2] each. Throws `L-ROPE` for an odd head size. */
export function ropeTables(
  device: Device,
  rope: Rope,
  headDim: number,
  first: number,
  count: number,
): RopeTables {
  if (headDim % 2 !== 0) {
    throw new SidenetError("L-ROPE", `rope rotates pairs, so head_dim ${headDim} has to be even.`);
  }
  let values: ReturnType<typeof ropeValues> | null = null;
  const table = (part: "cos" | "sin", label: string) => {
    const make = () => {
      values ??= ropeValues(rope, headDim, first, count);
      return values[part];
    };
    return device.tensor(make, [count, headDim / 2], { label });
  };
  return { cos: table("cos", "rope cosines"), sin: table("sin", "rope sines") };
}
