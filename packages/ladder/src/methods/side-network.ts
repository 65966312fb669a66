/**
 * Ladder and xLadder (methods.md, 2 and 3): a small decoder beside the frozen backbone. It reads hidden states through
 * rungs and adds U · rmsNorm(s_l) to the last one. The two methods are the same network; they differ in which hidden states
 * have rungs and in the number of free layers.
 */
import { type Device, type Ops, ParamStore, type Shape, SidenetError, type Tensor } from "@sidenet/tensor";
import {
  type BlockContext,
  type BlockShape,
  type BlockWeights,
  block,
  blockWeights,
  type LayerCache,
  type RunLayer,
  recomputedBlock,
} from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import type { Forward } from "../model/decoder.ts";
import { ropeTables } from "../model/rope-tables.ts";
import { kvLayers, kvShapes } from "../model/state-cache.ts";
import type { Adapter, SideAdapter, SidePass, SidePassOptions } from "./adapter.ts";
import {
  gateName,
  rungName,
  SIDE_NORM,
  SIDE_UP,
  type SideConfig,
  sideBlockShape,
  sideDepth,
  sideLayerName,
  sideParameters,
} from "./side-config.ts";
import { type InitialSide, randomValues } from "./side-init.ts";

/** The side network. Its parameters are f32 and accounted as "adapter". */
export class SideNetwork implements Adapter, SideAdapter {
  readonly isRepeatable = true;
  readonly config: SideConfig;
  readonly model: ModelConfig;
  readonly parameters: ParamStore;
  readonly shape: BlockShape;
  /** Weights of the side layers 1 .. l. */
  readonly layers: readonly BlockWeights[];

  /** Takes ownership of the store. Throws `L-ADAPTER-CONFIG`, or `T-NAME` for a missing parameter. */
  constructor(config: SideConfig, model: ModelConfig, parameters: ParamStore) {
    this.config = config;
    this.model = model;
    this.parameters = parameters;
    this.shape = sideBlockShape(config, model);
    for (const { name } of sideParameters(config, model)) parameters.get(name); // none may lack
    this.layers = Array.from({ length: config.num_hidden_layers }, (_, i) =>
      blockWeights(this.shape, parameters, sideLayerName(i + 1, "")),
    );
  }

  /**
   * A side network with random initial values from the seed of its configuration, except for those in `initial`.
   * Throws `L-PRUNED` where the configuration says `init: "pruned"` and `initial` has no pruned values.
   */
  static initialize(
    device: Device,
    config: SideConfig,
    model: ModelConfig,
    initial: InitialSide = {},
  ): SideNetwork {
    const { pruned } = initial;
    if (config.init === "pruned" && !pruned && device.holdsValues) {
      throw new SidenetError(
        "L-PRUNED",
        'init: "pruned" takes its values from the backbone. Use initializeAdapter, which reads them.',
      );
    }
    const parameters = ParamStore.filled(device, "adapter", (store) => {
      for (const [stream, spec] of sideParameters(config, model).entries()) {
        const { name, shape } = spec;
        const values = () => pruned?.get(name) ?? randomValues(spec, stream, config, model, initial);
        store.add(name, device.tensor(values, shape, { category: "adapter", label: name }));
      }
    });
    return new SideNetwork(config, model, parameters);
  }

  /** The method in its configuration. */
  get method(): "ladder" | "xladder" {
    return this.config.method;
  }

  get side(): SideAdapter {
    return this;
  }

  /** Keys and values of every side layer. */
  cacheShapes(capacity: number): readonly Shape[] {
    const {
      num_hidden_layers: numLayers,
      num_key_value_heads: numKeyValueHeads,
      head_dim: headDim,
    } = this.config;
    return kvShapes({ numLayers, numKeyValueHeads, headDim }, capacity);
  }

  get effectiveDepth(): number {
    return sideDepth(this.config, this.model);
  }

  /** Its sizes and form. */
  configJson(): object {
    return this.config;
  }

  /** Starts a forward pass beside one of the backbone. `ops` is a tape to train, or the device's ops to run. */
  start(ops: Ops, forward: Forward, options: SidePassOptions = {}): SidePass {
    const { device } = this.parameters;
    const { offset } = forward.context;
    const length = forward.ids.shape[1];
    const rope = ropeTables(device, this.model.rope, this.config.head_dim, offset, length);
    return new SideNetworkPass(this, ops, { ...forward.context, rope }, options);
  }

  /** Frees its parameters. */
  dispose(): void {
    this.parameters.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** μ s + (1 - μ) r with μ = σ(α / τ) (methods.md, 2): state s and rung r [B,T,d_s], a null state is 0; α f32[1], temperature τ. */
export function gateFusion(
  ops: Ops,
  state: Tensor | null,
  read: Tensor,
  alpha: Tensor,
  temperature: number,
): Tensor {
  const scalar = ops.reshape(alpha, { shape: [] });
  const rest = ops.sigmoid(ops.scale(scalar, { factor: -1 / temperature })); // 1 - σ(x) = σ(-x)
  const gated = ops.scaleBy(read, rest);
  if (!state) return gated;
  const mu = ops.sigmoid(ops.scale(scalar, { factor: 1 / temperature }));
  return ops.add(ops.scaleBy(state, mu), gated);
}

/** One forward pass of a side network. Given each hidden state in turn, it runs the side layers whose rungs read it. */
class SideNetworkPass implements SidePass {
  readonly #network: SideNetwork;
  readonly #ops: Ops;
  readonly #context: BlockContext;
  readonly #cache: readonly LayerCache[] | null;
  readonly #runLayer: RunLayer | null;
  /** s_k of the last side layer that ran; null is s_0 = 0. */
  #state: Tensor | null = null;
  #layersDone = 0;
  readonly #onState: ((k: number, state: Tensor) => void) | null;

  constructor(network: SideNetwork, ops: Ops, context: BlockContext, options: SidePassOptions) {
    this.#network = network;
    this.#ops = ops;
    this.#context = context;
    this.#cache = options.cache ? kvLayers(options.cache) : null;
    this.#runLayer = options.runLayer ?? null;
    this.#onState = options.onState ?? null;
  }

  /** Takes H_index, f32[B,T,d]. Only a rung's down projection D_k, which the tape records, reads it. */
  observe(index: number, h: Tensor): void {
    const { config } = this.#network;
    if (index === 0 && config.initial_rung) this.#advance(() => this.#read(0, h), "the initial rung");
    while (this.#layersDone < config.rungs.length && config.rungs[this.#layersDone] === index) this.#layer(h);
  }

  /** y = H_L + U · rmsNorm(s_l, w_side): f32[B,T,d], after all free layers. */
  finish(h: Tensor): Tensor {
    while (this.#layersDone < this.#network.config.num_hidden_layers) this.#layer(null);
    const ops = this.#ops;
    const { parameters, model } = this.#network;
    const state = this.#state!;
    return h.device.scope(
      () => {
        const normed = ops.rmsNorm(state, parameters.get(SIDE_NORM), { eps: model.rmsNormEps });
        return ops.add(h, ops.linear(normed, parameters.get(SIDE_UP)));
      },
      { consume: [state], label: "the side network's output" },
    );
  }

  /** Runs the next side layer k over u_k; `h` is the hidden state of its rung, null for a free layer. */
  #layer(h: Tensor | null): void {
    const k = ++this.#layersDone;
    this.#advance(() => this.#block(k, h === null ? this.#state! : this.#fuse(k, h)), `side layer ${k}`);
    this.#onState?.(k, this.#state!);
  }

  #block(k: number, u: Tensor): Tensor {
    const { shape, layers } = this.#network;
    const weights = layers[k - 1];
    if (this.#runLayer) return recomputedBlock(this.#runLayer, shape, weights, u, this.#context);
    return block(this.#ops, shape, weights, u, this.#context, this.#cache?.[k - 1] ?? null);
  }

  #advance(next: () => Tensor, label: string): void {
    const { device } = this.#network.parameters;
    const previous = this.#state;
    this.#state = device.scope(next, { consume: previous ? [previous] : [], label });
  }

  /** u_k: the state and the output of the rung, added or mixed by a gate. */
  #fuse(k: number, h: Tensor): Tensor {
    const ops = this.#ops;
    const { config, parameters } = this.#network;
    const read = this.#read(k, h);
    if (config.fusion === "add") return this.#state ? ops.add(this.#state, read) : read;
    return gateFusion(ops, this.#state, read, parameters.get(gateName(k)), config.gate_temperature);
  }

  /** D_k n(H). The tape keeps n(H) for the gradient of D_k; it is accounted as "rungs". */
  #read(k: number, h: Tensor): Tensor {
    const { config, model, parameters } = this.#network;
    const n = config.rung_norm ? h.device.ops.rmsNorm(h, null, { eps: model.rmsNormEps }) : h;
    h.device.categorize(n, "rungs");
    return this.#ops.linear(n, parameters.get(rungName(k)));
  }
}
