/** What a method of fine-tuning gives to a decoder: trained parameters, and where they act (methods.md, 2 to 4). */
import type { ParamStore, Tensor } from "@sidenet/tensor";
import type { BlockWeights } from "./block.ts";
import type { Head } from "./head.ts";
import type { SideNetwork } from "./side-network.ts";

/** What can be trained; QLoRA is LoRA over NF4 weights. */
export const METHODS = ["ladder", "xladder", "lora", "qlora", "full", "head"] as const;
/** The name of a method, as `--method` takes it. */
export type Method = (typeof METHODS)[number];

/** Training inside the blocks: these are then recorded. */
export interface BlockAdapter {
  /** What is trained in block `layer`, counted from 0, in an order of the adapter's own. */
  tensors(layer: number): readonly Tensor[];
  /**
   * The block's weights with `tensors`, or other handles on them, in their places. `dropoutStream` numbers the draws of a
   * training pass, so that a block that is computed again drops the same values; null: nothing is dropped.
   */
  weights(
    layer: number,
    frozen: BlockWeights,
    tensors: readonly Tensor[],
    dropoutStream: number | null,
  ): BlockWeights;
}

/** Trained parameters and where they act; each place is null where the method leaves the backbone as it is. */
export interface Adapter {
  /** One of `METHODS`, or the name of one's own. */
  readonly method: string;
  /** f32, by the names of `adapter_model.safetensors`. */
  readonly parameters: ParamStore;
  /** A network beside the backbone, whose blocks are then read and never recorded. */
  readonly side: SideNetwork | null;
  readonly blocks: BlockAdapter | null;
  /** In place of the backbone's own head. */
  readonly head: Head | null;
  /** Frees what is trained, and what belongs to it. */
  dispose(): void;
  /** For `using`. */
  [Symbol.dispose](): void;
}
