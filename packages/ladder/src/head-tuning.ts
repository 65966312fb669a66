/** Training the head alone: the cheapest thing that can be trained, and a baseline for what is better. */
import { isFloat, ParamStore, SidenetError } from "@sidenet/tensor";
import type { Adapter } from "./adapter.ts";
import type { ParameterSpec } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import { type Decoder, LM_HEAD } from "./decoder.ts";
import { floatHead, type Head } from "./head.ts";

/** What is trained, by its name in `adapter_model.safetensors`: a head [V,d] of its own, even where the model's is tied. */
export const headParameters = ({ vocabSize, hiddenSize }: ModelConfig): ParameterSpec[] => [
  { name: LM_HEAD, shape: [vocabSize, hiddenSize], kind: "linear" },
];

/** Training of the head alone, with the backbone frozen. */
export class HeadTuning implements Adapter {
  readonly method = "head";
  readonly head: Head;
  readonly model: ModelConfig;
  readonly parameters: ParamStore;

  /** Takes the store as its own. */
  constructor(model: ModelConfig, parameters: ParamStore) {
    this.model = model;
    this.parameters = parameters;
    this.head = floatHead(parameters.get(LM_HEAD));
  }

  /** A copy of the decoder's own head, in f32. Throws `L-HEAD` for a head in NF4. */
  static initialize(decoder: Decoder): HeadTuning {
    const { device, config } = decoder;
    if (!isFloat(decoder.headMatrix.dtype)) {
      throw new SidenetError(
        "L-HEAD",
        "the head lies in NF4, and training it starts from its values. Leave --quantize-ends out, or train an adapter.",
      );
    }
    const parameters = ParamStore.filled(device, "adapter", (store) => {
      store.set(LM_HEAD, device.ops.cast(decoder.headMatrix, { to: "f32" }));
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
