import { Random, sizeOf } from "@sidenet/tensor";
import type { ParameterSpec } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import type { Decoder } from "../model/decoder.ts";
import { initialValues } from "./initial-values.ts";
import { SIDE_NORM, SIDE_UP, type SideConfig } from "./side-config.ts";

/** Initial values that come from the backbone instead of a random generator. */
export interface InitialSide {
  /** Values of `init: "pruned"`, by parameter name. */
  readonly pruned?: ReadonlyMap<string, Float32Array> | null;
  /** Every value of w_side, see `residualScale`. Default 1. */
  readonly scale?: number;
}

/** Random initial values (methods.md, 2), each parameter from its own `stream`; U is zero, so the model starts as its backbone. */
export function randomValues(
  spec: ParameterSpec,
  stream: number,
  config: SideConfig,
  model: ModelConfig,
  { scale = 1 }: InitialSide = {},
): Float32Array {
  const count = sizeOf(spec.shape);
  if (spec.name === SIDE_UP) return new Float32Array(count);
  if (spec.name === SIDE_NORM) return new Float32Array(count).fill(scale);
  const { seed, num_hidden_layers: layers } = config;
  const rung = spec.name.startsWith("ladder.rungs.");
  return initialValues(spec, stream, layers, {
    seed,
    ...(rung && { deviation: 1 / Math.sqrt(model.hiddenSize) }),
  });
}

/** Number of tokens on which the size of the residual stream is measured. */
const PROBE_TOKENS = 64;

/**
 * The size of H_L: the median of √mean(H_L²) over the positions of a row of random tokens. The median ignores the few
 * positions with enormous values that some models have. U starts at 0 and Adam moves it by about the learning rate per step.
 * With w_side of this size, y = H_L + U · rmsNorm(s, w_side) moves in proportion to H_L, so that one learning rate suits
 * models whose residual streams differ in size.
 */
export async function residualScale(decoder: Decoder, seed: number): Promise<number> {
  const { device, config } = decoder;
  const random = new Random(seed, 0);
  const length = Math.min(PROBE_TOKENS, decoder.contextLimit);
  const inputIds = Array.from({ length }, () => Math.floor(random.uniform() * config.vocabSize));
  using last = device.scope(() =>
    decoder.hidden(device.ops, decoder.prepare({ inputIds, batchSize: 1, length, attentionMask: null })),
  );
  const values = await last.read();
  const sizes = Array.from({ length }, (_, t) => {
    let sum = 0;
    for (let c = 0; c < config.hiddenSize; c++) sum += values[t * config.hiddenSize + c] ** 2;
    return Math.sqrt(sum / config.hiddenSize);
  });
  const middle = sizes.sort((a, b) => a - b)[length >> 1];
  return Number.isFinite(middle) && middle > 0 ? middle : 1;
}
