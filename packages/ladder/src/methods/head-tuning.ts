/** Training of lm_head alone: the cheapest method, and a baseline for the others. */
import { isFloat, ParamStore, SidenetError } from "@sidenet/tensor";
import type { ParameterSpec } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { type Decoder, LM_HEAD } from "../model/decoder.ts";
import { floatHead, type Head } from "../model/head.ts";
import type { Adapter } from "./adapter.ts";

/** The trained parameter: a separate head [V,d], even where the model's head is tied to its embedding table. */
export const headParameters = ({ vocabSize, hiddenSize }: ModelConfig): ParameterSpec[] => [
  { name: LM_HEAD, shape: [vocabSize, hiddenSize], kind: "linear" },
];

/** A trained lm_head over a frozen backbone. */
export class HeadTuning implements Adapter {
  readonly method = "head";
  readonly isRepeatable = true;
  readonly head: Head;
  readonly model: ModelConfig;
  readonly parameters: ParamStore;

  /** Takes ownership of the store. */
  constructor(model: ModelConfig, parameters: ParamStore) {
    this.model = model;
    this.parameters = parameters;
    this.head = floatHead(parameters.get(LM_HEAD));
  }

  /** Starts from an f32 copy of the decoder's head. Throws `L-HEAD` for a head in NF4. */
  static initialize(decoder: Decoder): HeadTuning {
    const { device, config } = decoder;
    if (!isFloat(decoder.headMatrix.dtype)) {
      throw new SidenetError(
        "L-HEAD",
        "the head is in NF4, and its training must start from unrounded values. Leave out --quantize-ends, or train an adapter.",
      );
    }
    const parameters = ParamStore.filled(device, "adapter", (store) => {
      store.add(LM_HEAD, device.ops.cast(decoder.headMatrix, { to: "f32" }));
    });
    return new HeadTuning(config, parameters);
  }

  /** Frees the trained head. */
  dispose(): void {
    this.parameters.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
