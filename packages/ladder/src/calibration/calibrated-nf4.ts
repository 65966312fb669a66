import { nf4Table } from "@sidenet/tensor";
import { checkFinite, type DoubleNf4 } from "../model/nf4-weight.ts";
import { type Feedback, roundWithFeedback } from "./feedback.ts";
import { BlockScales, blockMagnitudes, packCodes } from "./nf4-grid.ts";

/**
 * Quantizes a weight [out, in] with the `feedback` of its inputs' moments. Scales are rounded to 8 bits before the codes are
 * chosen, so the codes compensate for that rounding too. Throws `L-NF4-FINITE`, naming the weight.
 */
export function calibratedNf4(name: string, weight: Float32Array, feedback: Feedback): DoubleNf4 {
  checkFinite(name, weight);
  const scales = new BlockScales(blockMagnitudes(weight));
  const { codes } = roundWithFeedback(weight, scales, feedback);
  const table = nf4Table({ offset: scales.offset });
  return { codes: packCodes(codes), table, absmax: scales.nested, scales: scales.scales };
}
