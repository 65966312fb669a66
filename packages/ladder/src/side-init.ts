import { Random, sizeOf } from "@sidenet/tensor";
import type { ParameterSpec } from "./block.ts";
import { contextLimit, type ModelConfig } from "./config.ts";
import type { Decoder } from "./decoder.ts";
import { initialValues } from "./initial-values.ts";
import { SIDE_NORM, SIDE_UP, type SideConfig } from "./side-config.ts";

/** Initial values that are not drawn: matrices pruned from the backbone, and the size of what U adds to. */
export interface InitialSide {
  readonly pruned?: ReadonlyMap<string, Float32Array> | null;
  /** Every value of w_side; 1 where it is not said. */
  readonly scale?: number;
}

/** Initial values (methods.md, 2): U = 0, so that the model starts as its backbone. Each parameter has its own stream. */
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

/** Tokens that the size of the residual stream is measured on. */
const PROBE_TOKENS = 64;

/**
 * How large H_L is: the median over the positions of a row of random tokens of √mean(H_L²), which a few positions of enormous
 * values leave alone. U starts at 0 and moves by steps of the learning rate, whatever it is added to: with w_side of this
 * size, y = H_L + U · rmsNorm(s, w_side) moves relative to H_L, and one learning rate serves every model.
 */
export async function residualScale(decoder: Decoder, seed: number): Promise<number> {
  const { device, config } = decoder;
  const random = new Random(seed, 0);
  const length = Math.min(PROBE_TOKENS, contextLimit(config));
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
