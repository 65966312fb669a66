import { nf4Table } from "@sidenet/tensor";
import { checkFinite, type DoubleNf4 } from "../nf4-weight.ts";
import { type Feedback, roundWithFeedback } from "./feedback.ts";
import { BlockScales, blockMagnitudes, packCodes } from "./nf4-grid.ts";

/** A weight in NF4, and the squared error of its outputs as a share of their squares, both on the calibration text. */
interface CalibratedWeight {
  readonly nf4: DoubleNf4;
  readonly error: number;
}

/**
 * Quantizes a weight [out, in] whose inputs have the moments that `feedback` was made of. Scales come first, as they will be read,
 * so the codes answer their rounding too. Throws `L-NF4-FINITE`, naming the weight.
 */
export function calibratedNf4(name: string, weight: Float32Array, feedback: Feedback): CalibratedWeight {
  checkFinite(name, weight);
  const scales = new BlockScales(blockMagnitudes(weight));
  const { codes, error } = roundWithFeedback(weight, scales, feedback);
  const table = nf4Table({ offset: scales.offset });
  return { nf4: { codes: packCodes(codes), table, absmax: scales.nested, scales: scales.scales }, error };
}
