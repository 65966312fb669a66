/** Full fine-tuning of a small model. */
import { type ParamStore, SidenetError, type Tensor } from "@sidenet/tensor";
import type { Adapter, BlockAdapter } from "./adapter.ts";
import { type BlockWeights, blockParameters, blockWeights } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import { type Decoder, layerName } from "./decoder.ts";

/**
 * Full fine-tuning: it trains the decoder's own weights, which the decoder goes on owning. Until `dispose()` their memory is
 * accounted as "adapter", since they are what is trained.
 */
export class FullTuning implements Adapter, BlockAdapter {
  readonly method = "full";
  readonly parameters: ParamStore;
  readonly #config: ModelConfig;
  readonly #names: readonly string[];

  /** Throws `L-METHOD` unless every weight is f32: small updates are lost in fewer bits. */
  constructor({ config, weights }: Decoder) {
    for (const [name, { dtype }] of weights) {
      if (dtype === "f32") continue;
      throw new SidenetError(
        "L-METHOD",
        `${name} is ${dtype}; full fine-tuning trains every weight and wants f32. Load the model with --dtype f32 and ` +
          "--quantize none, or train an adapter.",
      );
    }
    for (const [, tensor] of weights) weights.device.categorize(tensor, "adapter");
    this.parameters = weights;
    this.#config = config;
    this.#names = blockParameters(config).map(({ name }) => name);
  }

  /** All weights of every block are trained. */
  get blocks(): BlockAdapter {
    return this;
  }

  tensors(layer: number): Tensor[] {
    return this.#names.map((name) => this.parameters.get(layerName(layer, name)));
  }

  weights(_layer: number, _frozen: BlockWeights, tensors: readonly Tensor[]): BlockWeights {
    const byName = new Map(this.#names.map((name, i) => [name, tensors[i]]));
    return blockWeights(
      this.#config,
      (name) => byName.get(name) ?? null,
      (name) => byName.get(name)!,
    );
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
