/** LoRA (methods.md, 4): a trainable product of two small matrices added to a frozen linear layer. */
import { type Device, ParamStore, Random, type Tensor } from "@sidenet/tensor";
import {
  type BlockWeights,
  blockParameters,
  type ParameterSpec,
  PROJECTION_NAMES,
  PROJECTIONS,
} from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { layerName } from "../model/decoder.ts";
import type { Projection } from "../model/projection.ts";
import type { Adapter } from "./adapter.ts";
import { type LoraConfig, type LoraSite, loraSites, peftConfigJson } from "./lora-config.ts";

/** The matrices of LoRA at one linear layer: y += scale · B A x. */
export interface LowRank {
  /** A [r,in] */
  readonly a: Tensor;
  /** B [out,r] */
  readonly b: Tensor;
  /** alpha / r, or alpha / √r with rsLoRA */
  readonly scale: number;
  /** Dropout of A's input in training. */
  readonly dropout?: { readonly rate: number; readonly seed: number; readonly stream: number } | null;
}

/**
 * The layer base(x) + scale · (dropout(x) · Aᵀ) · Bᵀ. The two terms, each as large as the sum, are freed when the call ends,
 * unless a tape has saved them.
 */
export function withLowRank(base: Projection, { a, b, scale, dropout = null }: LowRank): Projection {
  return (ops, x) =>
    x.device.scope(() => {
      const kept = dropout ? ops.dropout(x, dropout) : x;
      const narrow = ops.scale(ops.linear(kept, a), { factor: scale });
      return ops.add(base(ops, x), ops.linear(narrow, b));
    });
}

/** The Hugging Face name of a site's layer, "model.layers.0.self_attn.q_proj"; PEFT puts "base_model.model." in front. */
const moduleName = ({ layer, projection }: LoraSite): string => layerName(layer, PROJECTIONS[projection]);
const siteName = (site: LoraSite): string => `base_model.model.${moduleName(site)}`;

/** Every parameter of a LoRA adapter, by PEFT's names: A, then B of each site. */
export function loraParameters(config: LoraConfig, model: ModelConfig): ParameterSpec[] {
  const shapes = new Map(blockParameters(model).map(({ name, shape }) => [name, shape]));
  return loraSites(config, model).flatMap((site): ParameterSpec[] => {
    const [out, inner] = shapes.get(`${PROJECTIONS[site.projection]}.weight`)!;
    return [
      { name: `${siteName(site)}.lora_A.weight`, shape: [site.rank, inner], kind: "linear" },
      { name: `${siteName(site)}.lora_B.weight`, shape: [out, site.rank], kind: "linear" },
    ];
  });
}

const zeros = ([out, inner]: readonly number[]): Float32Array => new Float32Array(out * inner);

/** Uniform within ±1/√in, which is Kaiming-uniform with a = √5. */
function kaimingUniform(shape: readonly number[], seed: number, stream: number): Float32Array {
  const random = new Random(seed, stream);
  const bound = 1 / Math.sqrt(shape[1]);
  return zeros(shape).map(() => bound * (2 * random.uniform() - 1));
}

/** Random streams from here on are for dropout; those below are for initial values. */
const DROPOUT_STREAMS = 2 ** 31;

/** A LoRA adapter. Over a decoder whose weights are in NF4 it is QLoRA, with the same code. */
export class Lora implements Adapter {
  readonly method = "lora";
  readonly config: LoraConfig;
  readonly model: ModelConfig;
  readonly parameters: ParamStore;
  readonly #seed: number;
  /** By layer; the matrices are looked up once, since a long name costs the host as much as an op. */
  readonly #sites: readonly (readonly (LoraSite & LowRank)[])[];

  /** Takes ownership of the store; `seed` is for dropout. Throws `L-ADAPTER-CONFIG`. */
  constructor(config: LoraConfig, model: ModelConfig, parameters: ParamStore, seed = 0) {
    this.config = config;
    this.model = model;
    this.parameters = parameters;
    this.#seed = seed;
    const matrix = (site: LoraSite, part: string) => parameters.get(`${siteName(site)}.${part}.weight`);
    const sites = loraSites(config, model).map((site) => ({
      ...site,
      a: matrix(site, "lora_A"),
      b: matrix(site, "lora_B"),
    }));
    this.#sites = Array.from({ length: model.numHiddenLayers }, (_, layer) =>
      sites.filter((site) => site.layer === layer),
    );
  }

  /** A LoRA with PEFT's initial values: A Kaiming-uniform with a = √5, B zero, so that the model starts as its backbone. */
  static initialize(device: Device, config: LoraConfig, model: ModelConfig, seed = 0): Lora {
    const parameters = ParamStore.filled(device, "adapter", (store) => {
      for (const [stream, { name, shape }] of loraParameters(config, model).entries()) {
        const values = () =>
          name.endsWith("lora_A.weight") ? kaimingUniform(shape, seed, stream) : zeros(shape);
        store.add(name, device.tensor(values, shape, { category: "adapter", label: name }));
      }
    });
    return new Lora(config, model, parameters, seed);
  }

  /** False with dropout, which draws other numbers in each pass. */
  get isRepeatable(): boolean {
    return this.config.lora_dropout === 0;
  }

  /** The updates scale · B · A, each with the Hugging Face name of the weight it adds to. */
  updates(): { weight: string; a: Tensor; b: Tensor; scale: number }[] {
    return this.#sites.flat().map((site) => ({
      weight: `${moduleName(site)}.weight`,
      a: site.a,
      b: site.b,
      scale: site.scale,
    }));
  }

  adaptBlock(layer: number, frozen: BlockWeights, dropoutStream: number | null): BlockWeights {
    const { lora_dropout: rate } = this.config;
    const adapted: Record<string, Projection> = {};
    for (const [i, site] of this.#sites[layer].entries()) {
      const { projection, a, b, scale } = site;
      // Each site of each training pass has its own random stream.
      const draw = ((dropoutStream ?? 0) * this.#sites.length + layer) * PROJECTION_NAMES.length + i;
      const stream = DROPOUT_STREAMS + (draw % DROPOUT_STREAMS);
      const dropout = rate > 0 && dropoutStream !== null ? { rate, seed: this.#seed, stream } : null;
      adapted[projection] = withLowRank(frozen[projection], { a, b, scale, dropout });
    }
    return { ...frozen, ...adapted };
  }

  /** The content of PEFT's `adapter_config.json`. */
  configJson(): object {
    return peftConfigJson(this.config);
  }

  /** Frees A and B. */
  dispose(): void {
    this.parameters.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
