import { SidenetError, type Tensor } from "@sidenet/tensor";
import type { Gradients } from "./backward.ts";

/** Partial sums of the squared norm: enough for a GPU's cores to add to at the same time. */
const NORM_PARTS = 256;

/**
 * Norm of all gradients together and the factor that brings it down to `maxNorm`: min(1, maxNorm / (norm + 1e-6)), as in
 * PyTorch (methods.md, 6). Both are f32 scalars on the device, so nothing waits: pass `factor` to the optimizer as
 * `gradScale`. They belong to the innermost scope. Throws `A-CLIP` unless maxNorm >= 0 and there is a gradient.
 */
export function clipGlobalNorm(gradients: Gradients, maxNorm: number): { factor: Tensor; norm: Tensor } {
  if (!(maxNorm >= 0)) throw new SidenetError("A-CLIP", `maxNorm is ${maxNorm}, wanted a number >= 0.`);
  const [first] = gradients.values();
  if (first === undefined)
    throw new SidenetError("A-CLIP", "there are no gradients to clip: the map is empty.");
  const { device } = first;
  return device.scope(() => {
    const totals = device.zeros([NORM_PARTS], { label: "squared norm of the gradients" });
    for (const gradient of gradients.values()) device.ops.sumSquares(totals, gradient);
    const [factor, norm] = device.ops.clipFactor(totals, { maxNorm });
    return { factor, norm };
  });
}

/**
 * Adds the gradients of one micro-batch to `totals`, in place, and consumes them: a leaf's first gradient moves into
 * `totals` and out of its scope, later ones are added and freed. Free the totals with `disposeGradients` after the step.
 */
export function accumulateGradients(totals: Gradients, gradients: Gradients): void {
  for (const [leaf, gradient] of gradients) {
    const { device } = gradient;
    const total = totals.get(leaf);
    if (total === undefined) {
      totals.set(leaf, device.keep(gradient, "gradients"));
    } else {
      device.ops.accumulate(total, gradient);
      gradient.dispose("accumulateGradients");
    }
  }
  gradients.clear();
}

/** Frees the gradients and empties the map. */
export function disposeGradients(gradients: Gradients): void {
  for (const gradient of gradients.values()) gradient.dispose("disposeGradients");
  gradients.clear();
}
