import type { ParameterSpec } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import { initialValues } from "./initial-values.ts";
import { SIDE_UP, type SideConfig } from "./side-config.ts";

/** Initial values (methods.md, 2): U = 0, so that the model starts as its backbone. Each parameter has its own stream. */
export function randomValues(
  spec: ParameterSpec,
  stream: number,
  config: SideConfig,
  model: ModelConfig,
): Float32Array {
  if (spec.name === SIDE_UP) return new Float32Array(spec.shape.reduce((a, b) => a * b, 1));
  const { seed, num_hidden_layers: layers } = config;
  const rung = spec.name.startsWith("ladder.rungs.");
  return initialValues(spec, stream, layers, {
    seed,
    ...(rung && { deviation: 1 / Math.sqrt(model.hiddenSize) }),
  });
}
