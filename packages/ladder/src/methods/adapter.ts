/** Adapters: the parameters that a fine-tuning method trains, and where they act on a decoder (methods.md, 2 to 4). */
import type { Ops, ParamStore, Shape, Tensor } from "@sidenet/tensor";
import type { BlockWeights, RunLayer } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import type { Forward } from "../model/decoder.ts";
import type { Head } from "../model/head.ts";

/** The fine-tuning methods; QLoRA is LoRA over NF4 weights. */
export const METHODS = ["ladder", "xladder", "lora", "qlora", "full", "head"] as const;
/** The name of a method, as given to `--method`. */
export type Method = (typeof METHODS)[number];

/** Options of a forward pass of a side adapter. */
export interface SidePassOptions {
  /** What it keeps of earlier positions, f32 [B, ...] for each of `cacheShapes`, to be read and updated; null: none. */
  readonly cache?: readonly Tensor[] | null;
  /** Runs each layer under gradient checkpointing. */
  readonly runLayer?: RunLayer | null;
  /** Called with k and the state after side layer k. */
  readonly onState?: ((k: number, state: Tensor) => void) | null;
}

/** One forward pass of a side adapter beside one of the backbone. */
export interface SidePass {
  /**
   * Takes H_index, f32[B,T,d]: H_0, then the output of each block in turn. H_index is freed when the next block has read it.
   * Tensors made here belong to the scope of the whole pass, so intermediate results need a scope of their own.
   */
  observe(index: number, h: Tensor): void;
  /**
   * Takes the keys and values of block `layer`, counted from 0, before `observe` takes its output: f32[B,S,n_kv,c], of all positions
   * that attention sees there, keys after rope. They are freed when that `observe` returns. Absent: they are not kept so long.
   */
  observeAttention?(layer: number, k: Tensor, v: Tensor): void;
  /** y f32[B,T,d], which goes into the final norm in place of H_L. */
  finish(h: Tensor): Tensor;
}

/** A network beside the backbone. It reads hidden states and changes no block, so the blocks are not recorded. */
export interface SideAdapter {
  /** Starts a forward pass beside one of the backbone over `forward`. `ops` is a tape to train, else the device's ops. */
  start(ops: Ops, forward: Forward, options: SidePassOptions): SidePass;
  /**
   * Shapes, without the batch, of the tensors in which it keeps what later positions need of up to `capacity` positions: those of
   * `kvShapes` for blocks, that of the state of a recurrence. Empty for a network in which no position depends on another.
   */
  cacheShapes(capacity: number): readonly Shape[];
  /** Number of blocks on the longest path from tokens to logits. Default: that of the backbone. */
  readonly effectiveDepth?: number;
}

/** Number of blocks on the longest path from tokens to logits (methods.md, 3). */
export const effectiveDepth = ({ side }: Adapter, { numHiddenLayers }: ModelConfig): number =>
  side?.effectiveDepth ?? numHiddenLayers;

/** Trained parameters and where they act: `embed`, `adaptBlock`, `side` and `head`, absent where the method changes nothing. */
export interface Adapter {
  /** One of `METHODS`, or any other name for a method of your own. */
  readonly method: string;
  /** f32 tensors, under their names in `adapter_model.safetensors`. */
  readonly parameters: ParamStore;
  /**
   * Replaces the embedded tokens: H_0 f32[B,T,d], from `forward.tokens` and the h that the backbone's embedding makes of them.
   * The blocks are then given the tape, which records what depends on trained tensors.
   */
  embed?(ops: Ops, forward: Forward, h: Tensor): Tensor;
  /**
   * The weights of block `layer`, counted from 0, with what is trained in it. `dropoutStream` is the number of the training pass,
   * from which dropout draws; null: no dropout. The blocks are then given the tape, which records what depends on trained tensors:
   * nothing before the first block that has some.
   */
  adaptBlock?(layer: number, frozen: BlockWeights, dropoutStream: number | null): BlockWeights;
  /** A network beside the backbone. */
  readonly side?: SideAdapter | null;
  /**
   * Whether its parts depend on tensors alone, those that they are given and the trained ones, and not on `forward.tokens` or other
   * numbers of the host: then steps and evaluations of equal shapes issue equal commands, and a GPU is given those of an earlier
   * one again, without a call of these parts (`Device.repeat`). Default false.
   */
  readonly isRepeatable?: boolean;
  /** Replaces the backbone's head. */
  readonly head?: Head | null;
  /** The content of `adapter_config.json`. Default: the method, and the name of the base model. */
  configJson?(baseModel: string): object;
  /** Frees the trained parameters and everything else that the adapter owns. */
  dispose(): void;
  /** For `using`. */
  [Symbol.dispose](): void;
}
