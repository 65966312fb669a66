import { Random } from "@sidenet/tensor";
import type { ParameterSpec } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import { SIDE_UP, type SideConfig } from "./side-config.ts";

/** Initial values (methods.md, 2): U = 0, so that the model starts as its backbone. Each parameter has its own stream. */
export function randomValues(
  spec: ParameterSpec,
  stream: number,
  config: SideConfig,
  model: ModelConfig,
): Float32Array {
  const values = new Float32Array(spec.shape.reduce((a, b) => a * b, 1));
  if (spec.kind === "norm") return values.fill(1);
  if (spec.kind === "bias" || spec.name === SIDE_UP) return values;
  const residual = /(o_proj|down_proj)\.weight$/.test(spec.name);
  const deviation = spec.name.startsWith("ladder.rungs.")
    ? 1 / Math.sqrt(model.hiddenSize)
    : residual
      ? 0.02 / Math.sqrt(2 * config.num_hidden_layers)
      : 0.02;
  return new Random(config.seed, stream).normals(values.length, deviation);
}
