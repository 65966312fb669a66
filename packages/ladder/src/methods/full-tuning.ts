/** Full fine-tuning of a small model. */
import { type ParamStore, SidenetError } from "@sidenet/tensor";
import type { BlockWeights } from "../model/block.ts";
import type { Decoder } from "../model/decoder.ts";
import type { Adapter } from "./adapter.ts";

/**
 * Full fine-tuning: it trains the decoder's own weights, which the decoder goes on owning. Until `dispose()` their memory is
 * accounted as "adapter", since they are what is trained.
 */
export class FullTuning implements Adapter {
  readonly method = "full";
  readonly isRepeatable = true;
  readonly parameters: ParamStore;

  /** Throws `L-METHOD` unless every weight is f32: small updates are lost in fewer bits. */
  constructor({ weights }: Decoder) {
    for (const [name, { dtype }] of weights) {
      if (dtype === "f32") continue;
      throw new SidenetError(
        "L-METHOD",
        `${name} is ${dtype}; full fine-tuning trains every weight and wants f32. Load the model with --dtype f32 and ` +
          "--quantize none, from files that are not in NF4 themselves (sidenet convert --dtype f32 writes such), or train an adapter.",
      );
    }
    for (const [, tensor] of weights) weights.device.categorize(tensor, "adapter");
    this.parameters = weights;
  }

  /** The block as it is: its weights are leaves of the tape. */
  adaptBlock(_layer: number, weights: BlockWeights): BlockWeights {
    return weights;
  }

  /** The weights belong to the decoder and stay; their memory is accounted under the decoder's category again. */
  dispose(): void {
    const { parameters } = this;
    if (parameters.disposed) return;
    for (const [, tensor] of parameters) parameters.device.categorize(tensor, parameters.category);
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
