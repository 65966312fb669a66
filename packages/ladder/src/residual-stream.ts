import type { Ops, Tensor } from "@sidenet/tensor";
import type { Adapter } from "./adapter.ts";
import type { Decoder, Forward } from "./decoder.ts";
import type { KvCache } from "./kv-cache.ts";
import type { RunLayer } from "./recomputed-block.ts";

/** Tokens of a row that go through a block at a time where nobody records it. */
const CHUNK_TOKENS = 512;

/** How a pass through model and adapter is computed. */
export interface StreamOptions {
  /** What trained parts compute with: a tape to train them, the device's ops (the default) to run them. */
  readonly ops?: Ops;
  readonly cache?: KvCache | null;
  readonly sideCache?: KvCache | null;
  /** Numbers a training pass for its dropout; null, the default: nothing is dropped. */
  readonly dropoutStream?: number | null;
  /** Gradient checkpointing of recorded blocks: the backbone's, or a side network's. */
  readonly runLayer?: RunLayer | null;
  /** Tokens that go through a frozen block at a time; default 512. */
  readonly chunkTokens?: number;
  /** Shown H_0 .. H_L, each while it lives. */
  readonly onHidden?: (index: number, h: Tensor) => void;
  /** Shown s_1 .. s_l. */
  readonly onSideState?: (k: number, state: Tensor) => void;
}

/**
 * What enters the final norm: H_L of the backbone, or y of backbone and adapter. f32[B,T,d].
 *
 * The backbone computes with `ops` only where an adapter trains inside its blocks. Otherwise it is given the device's own
 * ops, and has no way to be recorded.
 */
export function residualStream(
  decoder: Decoder,
  adapter: Adapter | null,
  forward: Forward,
  options: StreamOptions = {},
): Tensor {
  const plain = decoder.device.ops;
  const { ops = plain, onHidden, runLayer = null } = options;
  const backboneOps = adapter?.blocks ? ops : plain;
  const isRecorded = backboneOps !== plain;
  const cache = options.sideCache?.layers ?? null;
  const pass =
    adapter?.side?.start(ops, forward, { cache, runLayer, onState: options.onSideState ?? null }) ?? null;
  const h = decoder.hidden(backboneOps, forward, {
    observe: (index, state) => {
      onHidden?.(index, state);
      pass?.observe(index, state);
    },
    adapter: adapter?.blocks ?? null,
    cache: options.cache?.layers ?? null,
    dropoutStream: options.dropoutStream ?? null,
    ...(isRecorded ? { runLayer } : { chunkTokens: options.chunkTokens ?? CHUNK_TOKENS }),
  });
  if (!pass) return h;
  return decoder.device.scope(() => pass.finish(h), { consume: [h], label: "the end of the side network" });
}
