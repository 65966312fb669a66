/** What a method of fine-tuning gives to a decoder: trained parameters, and where they act (methods.md, 2 to 4). */
import type { Ops, ParamStore, Tensor } from "@sidenet/tensor";
import type { BlockWeights, LayerCache } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import type { Forward } from "./decoder.ts";
import type { Head } from "./head.ts";
import type { RunLayer } from "./recomputed-block.ts";

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

/** The keys and values that a network keeps for each earlier position while it generates text. */
export interface CacheShape {
  readonly numLayers: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
}

/** Options of one pass beside a backbone pass. */
export interface SidePassOptions {
  /** Keys and values of earlier positions, a `LayerCache` for each layer of the `cacheShape`; null: there are none. */
  readonly cache?: readonly LayerCache[] | null;
  /** For gradient checkpointing: runs a layer as a whole, so that the backward pass computes it again. */
  readonly runLayer?: RunLayer | null;
  /** Called with k and the state after side layer k, for tests and golden cases. */
  readonly onState?: ((k: number, state: Tensor) => void) | null;
}

/** One pass of a network beside a backbone pass. */
export interface SidePass {
  /**
   * Reads H_index, f32[B,T,d]: H_0, then the output of each block in turn. H_index is freed when the next block has read it. What
   * is made here belongs to the scope of the whole pass, so a network gives intermediate results a scope of their own.
   */
  observe(index: number, h: Tensor): void;
  /** y f32[B,T,d], which enters the final norm in place of H_L. */
  finish(h: Tensor): Tensor;
}

/** A network beside the backbone, whose blocks it reads and never changes, so that they are not recorded. */
export interface SideAdapter {
  /** Begins a pass beside a backbone pass over `forward`. `ops` is a tape while training, and the device's ops otherwise. */
  start(ops: Ops, forward: Forward, options: SidePassOptions): SidePass;
  /** What it caches to generate text; null for a network in which no position depends on another. */
  readonly cacheShape: CacheShape | null;
  /** Blocks on the longest way from tokens to logits. Default: those of the backbone. */
  readonly effectiveDepth?: number;
}

/** Blocks on the longest way from tokens to logits (methods.md, 3). */
export const effectiveDepth = ({ side }: Adapter, { numHiddenLayers }: ModelConfig): number =>
  side?.effectiveDepth ?? numHiddenLayers;

/** Trained parameters and where they act. A place that is left out, or null, stays as the backbone has it. */
export interface Adapter {
  /** One of `METHODS`, or the name of one's own. */
  readonly method: string;
  /** f32, by the names of `adapter_model.safetensors`. */
  readonly parameters: ParamStore;
  readonly side?: SideAdapter | null;
  readonly blocks?: BlockAdapter | null;
  /** In place of the backbone's own head. */
  readonly head?: Head | null;
  /** The contents of `adapter_config.json`. Default: the method, and the name of the base model. */
  configJson?(baseModel: string): object;
  /** Frees what is trained, and what belongs to it. */
  dispose(): void;
  /** For `using`. */
  [Symbol.dispose](): void;
}
