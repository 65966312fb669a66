import { formatShape, type Ops, SidenetError, sameShape, Tensor } from "@sidenet/tensor";
import type { RunLayer } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import type { Decoder, Forward } from "../model/decoder.ts";
import { kvLayers, type StateCache } from "../model/state-cache.ts";
import type { Adapter } from "./adapter.ts";

/**
 * Default number of tokens of a row that go through a block at a time where no tape records it: as many as the model is wide, so
 * that their activations stay in proportion to its weights, within limits.
 */
const chunkTokensOf = ({ hiddenSize }: ModelConfig): number => Math.min(2048, Math.max(512, hiddenSize));

/** Options of a forward pass through model and adapter. */
export interface StreamOptions {
  /** The ops of the trained parts: a tape to train them, the device's ops (the default) to run them. */
  readonly ops?: Ops;
  /** Keys and values of the backbone, of `kvShapes`. */
  readonly cache?: StateCache | null;
  /** Of the side network of each adapter. */
  readonly sideCaches?: readonly StateCache[];
  /** The number of the training pass, from which dropout draws; null, the default: no dropout. */
  readonly dropoutStream?: number | null;
  /** Runs each recorded block, of the backbone or of a side network, under gradient checkpointing. */
  readonly runLayer?: RunLayer | null;
  /** Tokens that go through a frozen block at a time; default: the hidden size, within 512 and 2048. */
  readonly chunkTokens?: number;
  /** Called with H_0 .. H_L, each of which is freed afterwards. */
  readonly onHidden?: (index: number, h: Tensor) => void;
  /** Called with the side network's states s_1 .. s_l. */
  readonly onSideState?: (k: number, state: Tensor) => void;
}

/**
 * The input of the final norm, f32[B,T,d]: H_L of the backbone, or y of backbone and side network.
 *
 * The backbone computes with `ops` only where an adapter trains inside its blocks or before them. Otherwise it is given the
 * device's own ops, so that a tape cannot record it.
 *
 * Throws `L-METHOD` for an adapter that changes the blocks after a prefix, or makes a hidden state of another shape.
 */
export function residualStream(
  decoder: Decoder,
  adapter: Adapter | null,
  forward: Forward,
  options: StreamOptions = {},
): Tensor {
  return residualStreams(decoder, [adapter], forward, options)[0];
}

/** Whether the hidden states of the backbone depend on the adapter. A side network only reads them, and a head follows them. */
export const changesBackbone = (adapter: Adapter | null): boolean =>
  Boolean(adapter?.embed || adapter?.adaptBlock);

/** A model's prefix has keys and values of its own blocks. An adapter inside them would have changed those. */
export const refusePrefix = (): SidenetError =>
  new SidenetError(
    "L-METHOD",
    "a prefix is read once, by the model's own blocks, and the method changes these. Train one beside them (ladder, xladder, head), " +
      "or put the prefix into the records.",
  );

/** Splits adapters, in their order, into those that can share a pass over the backbone; null is the backbone alone. */
export function sharedPasses(adapters: readonly (Adapter | null)[]): (Adapter | null)[][] {
  const passes: (Adapter | null)[][] = [];
  for (const adapter of adapters) {
    const pass = passes.at(-1);
    if (pass && ![...pass, adapter].some(changesBackbone)) pass.push(adapter);
    else passes.push([adapter]);
  }
  return passes;
}

/** `residualStream` of each adapter, by one pass over the backbone. The adapters must be one of `sharedPasses`. */
export function residualStreams(
  decoder: Decoder,
  adapters: readonly (Adapter | null)[],
  forward: Forward,
  options: StreamOptions = {},
): Tensor[] {
  const plain = decoder.device.ops;
  const { ops = plain, onHidden, runLayer = null, dropoutStream = null } = options;
  const changing = adapters.find(changesBackbone);
  if (changing && decoder.prefixIds.length > 0) throw refusePrefix();
  const backboneOps = changing ? ops : plain;
  const isRecorded = backboneOps !== plain;
  const passes = adapters.map((adapter, i) => {
    const cache = options.sideCaches?.[i]?.tensors ?? null;
    return adapter?.side?.start(ops, forward, { cache, runLayer, onState: options.onSideState ?? null });
  });
  const h = decoder.hidden(backboneOps, forward, {
    observe: (index, state) => {
      onHidden?.(index, state);
      for (const pass of passes) pass?.observe(index, state);
    },
    embed: changing?.embed
      ? (own) => checkHidden(changing, "embed", changing.embed!(ops, forward, own), own)
      : null,
    adaptBlock: changing?.adaptBlock
      ? (layer, frozen) => changing.adaptBlock!(layer, frozen, dropoutStream)
      : null,
    cache: options.cache ? kvLayers(options.cache.tensors) : null,
    ...(isRecorded ? { runLayer } : { chunkTokens: options.chunkTokens ?? chunkTokensOf(decoder.config) }),
  });
  const finish = (adapter: Adapter | null, i: number) => {
    const pass = passes[i];
    return adapter && pass ? checkHidden(adapter, "finish", pass.finish(h), h) : h;
  };
  return decoder.device.scope(() => adapters.map(finish), {
    consume: [h],
    label: "the end of the side network",
  });
}

/**
 * `residualStreams` and, as `frozen`, H_L of the model without adapters, which is that of the same pass unless an adapter changes
 * it. Throws `L-METHOD` where the model's own weights are trained.
 */
export function streamsAndFrozen(
  decoder: Decoder,
  adapters: readonly (Adapter | null)[],
  forward: Forward,
  options: StreamOptions = {},
): { ys: Tensor[]; frozen: Tensor } {
  const { device, config } = decoder;
  if (adapters.some((adapter) => adapter?.parameters === decoder.weights)) {
    throw new SidenetError(
      "L-METHOD",
      "the loss compares with the frozen model, and full fine-tuning changes the model itself. Train an adapter or a side network.",
    );
  }
  if (adapters.some(changesBackbone)) {
    const { chunkTokens } = options;
    const frozen = residualStream(decoder, null, forward, chunkTokens ? { chunkTokens } : {});
    return { frozen, ys: residualStreams(decoder, adapters, forward, options) };
  }
  let frozen: Tensor | null = null;
  const onHidden = (index: number, h: Tensor) => {
    options.onHidden?.(index, h);
    if (index === config.numHiddenLayers) frozen = device.ops.reshape(h, { shape: h.shape }); // a view that outlives h
  };
  const ys = residualStreams(decoder, adapters, forward, { ...options, onHidden });
  return { frozen: frozen!, ys };
}

/** Returns y, which `part` of an adapter made in place of the hidden state h. Throws `L-METHOD` unless it has h's shape. */
function checkHidden({ method }: Adapter, part: "embed" | "finish", y: Tensor, h: Tensor): Tensor {
  if (y instanceof Tensor && sameShape(y.shape, h.shape)) return y;
  throw new SidenetError(
    "L-METHOD",
    `${part} of the adapter "${method}" returned ${y}, wanted f32 ${formatShape(h.shape)}.`,
  );
}
