import type { Ops, Tensor } from "@sidenet/tensor";
import type { Decoder, Forward } from "./decoder.ts";
import type { KvCache } from "./kv-cache.ts";
import type { SideNetwork } from "./side-network.ts";

export interface StreamOptions {
  /** What the side network computes with: a tape to train it, the device's ops (the default) to run it. */
  readonly sideOps?: Ops;
  readonly cache?: KvCache | null;
  readonly sideCache?: KvCache | null;
  /** Shown H_0 .. H_L, each while it lives. */
  readonly onHidden?: (index: number, h: Tensor) => void;
  /** Shown s_1 .. s_l. */
  readonly onSideState?: (k: number, state: Tensor) => void;
}

/**
 * What enters the final norm: H_L of the backbone, or y of backbone and side network. f32[B,T,d].
 *
 * The backbone always computes with the device's own ops: it has no way to be recorded.
 */
export function residualStream(
  decoder: Decoder,
  side: SideNetwork | null,
  forward: Forward,
  options: StreamOptions = {},
): Tensor {
  const { ops } = decoder.device;
  const pass = side?.start(options.sideOps ?? ops, forward, options.sideCache?.layers) ?? null;
  if (pass) pass.onState = options.onSideState ?? null;
  const h = decoder.hidden(ops, forward, {
    observe: (index, state) => {
      options.onHidden?.(index, state);
      pass?.observe(index, state);
    },
    ...(options.cache ? { cache: options.cache.layers } : {}),
  });
  if (!pass) return h;
  return decoder.device.scope(() => pass.finish(h), { consume: [h], label: "the end of the side network" });
}
