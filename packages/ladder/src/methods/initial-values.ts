/** Initial values of a decoder or side network, as for GPT-2: normal, and smaller for matrices that write to the residual stream. */
import { type Device, ParamStore, Random, SidenetError, sizeOf } from "@sidenet/tensor";
import type { ParameterSpec } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { decoderParameters } from "../model/decoder.ts";

/** Standard deviation of initial matrices, as for Llama and GPT-2. */
const DEVIATION = 0.02;

/** Seed and size of initial values. */
export interface InitialOptions {
  /** Default 0. */
  readonly seed?: number;
  /** Standard deviation of matrices (`initializer_range` in a `config.json`). Default 0.02. */
  readonly deviation?: number;
}

/**
 * One parameter's values: norms 1, biases 0, matrices normal. The deviation of o_proj and down_proj is divided by
 * √(2 · layers), so that the residual stream does not grow with depth. Each parameter has its own random `stream`.
 */
export function initialValues(
  { name, shape, kind }: ParameterSpec,
  stream: number,
  layers: number,
  { seed = 0, deviation = DEVIATION }: InitialOptions,
): Float32Array {
  const values = new Float32Array(sizeOf(shape));
  if (kind === "norm") return values.fill(1);
  if (kind === "bias") return values;
  const residual = /(o_proj|down_proj)\.weight$/.test(name);
  return new Random(seed, stream).normals(
    values.length,
    residual ? deviation / Math.sqrt(2 * layers) : deviation,
  );
}

/**
 * The initial f32 weights of a decoder, for pretraining. Equal seeds give equal weights. Throws `L-INIT` for a deviation that
 * is not positive.
 */
export function initializeWeights(
  device: Device,
  config: ModelConfig,
  options: InitialOptions = {},
): ParamStore {
  const { deviation = DEVIATION } = options;
  if (!(deviation > 0 && Number.isFinite(deviation))) {
    throw new SidenetError(
      "L-INIT",
      `the deviation of initial weights is ${deviation}, wanted a positive number.`,
    );
  }
  return ParamStore.filled(device, "weights", (store) => {
    for (const [stream, spec] of decoderParameters(config).entries()) {
      const { name, shape } = spec;
      const values = () => initialValues(spec, stream, config.numHiddenLayers, options);
      store.add(name, device.tensor(values, shape, { category: "weights", label: name }));
    }
  });
}
