import { ParamStore, SidenetError, STATE_BLOCK, stateMaps, type Tensor } from "@sidenet/tensor";
import type { Gradients } from "./backward.ts";
import type { Optimizer, OptimizerState, OptimizerStep } from "./optimizer.ts";

/** Hyperparameters of AdamW, and the format of its moments. */
export interface AdamWOptions {
  /** Decay rates of the first and second moment. Default [0.9, 0.999]. */
  readonly betas?: readonly [number, number];
  /** Default 1e-8. */
  readonly eps?: number;
  /** Decoupled weight decay: each step subtracts lr · weightDecay · parameter. Default 0.01. */
  readonly weightDecay?: number;
  /** Whether it updates a parameter; the others are another optimizer's, as matrices are Muon's. Default: all are its own. */
  readonly only?: (name: string, parameter: Tensor) => boolean;
  /** Whether a parameter is excluded from weight decay, such as norms and gates. Default: none is. */
  readonly exclude?: (name: string, parameter: Tensor) => boolean;
  /** Moments in f32, or in 8 bits with a scale for each block of 256: a quarter of the bytes. Default f32. */
  readonly state?: "f32" | "8bit";
}

function checkNumber(name: string, value: number, legal: boolean, wanted: string): void {
  if (legal) return;
  throw new SidenetError("A-OPTIMIZER", `AdamW: ${name} is ${value}, wanted ${wanted}.`);
}

/** Name of the maps of 8-bit codes in the state. */
const MAPS = "maps";

/** Adds f32 moments of zeros as m.<parameter> and v.<parameter>. */
function fillF32(store: ParamStore, params: Iterable<[string, Tensor]>): void {
  for (const [name, { shape }] of params) {
    for (const label of [`m.${name}`, `v.${name}`]) {
      store.add(label, store.device.zeros(shape, { category: "optimizer", label }));
    }
  }
}

/** Adds 8-bit codes as m.<parameter> and v.<parameter>, their scales with ".absmax" appended, and the maps of the codes. */
function fill8Bit(store: ParamStore, params: Iterable<[string, Tensor]>): void {
  const { device } = store;
  const category = "optimizer";
  for (const [name, { shape, size }] of params) {
    for (const label of [`m.${name}`, `v.${name}`]) {
      const codes = new Uint8Array(size); // with a scale of 0 every code means 0
      const blocks = [Math.ceil(size / STATE_BLOCK)];
      store.add(label, device.tensor(codes, shape, { dtype: "u8", category, label }));
      const scales = `${label}.absmax`;
      store.add(scales, device.zeros(blocks, { category, label: scales }));
    }
  }
  store.add(MAPS, device.tensor(stateMaps(), [512], { category, label: MAPS }));
}

/**
 * AdamW with bias correction and decoupled weight decay (methods.md, 6; epsilon as in PyTorch: √v̂ + eps). The moments are
 * allocated by the constructor and live until `dispose()`; parameters are updated in place.
 *
 * Throws `A-OPTIMIZER` for options out of range or a parameter that is not f32.
 */
export class AdamW implements Optimizer {
  readonly params: ParamStore;
  readonly #state: ParamStore;
  readonly #betas: readonly [number, number];
  readonly #eps: number;
  readonly #weightDecay: number;
  readonly #only: (name: string, parameter: Tensor) => boolean;
  readonly #exclude: (name: string, parameter: Tensor) => boolean;
  /** What the codes of 8-bit moments mean; null for f32 moments. */
  readonly #maps: Tensor | null;
  #stepsDone = 0;

  constructor(params: ParamStore, options: AdamWOptions = {}) {
    const {
      betas = [0.9, 0.999],
      eps = 1e-8,
      weightDecay = 0.01,
      only = () => true,
      exclude = () => false,
      state = "f32",
    } = options;
    if (state !== "f32" && state !== "8bit") {
      throw new SidenetError("A-OPTIMIZER", `AdamW: state is "${state}", wanted "f32" or "8bit".`);
    }
    for (const [i, beta] of betas.entries())
      checkNumber(`betas[${i}]`, beta, beta >= 0 && beta < 1, "0 <= beta < 1");
    checkNumber("eps", eps, eps > 0 && eps < 1, "0 < eps < 1");
    checkNumber("weightDecay", weightDecay, weightDecay >= 0 && weightDecay < Infinity, "weightDecay >= 0");
    this.params = params;
    this.#only = only;
    for (const [name, { dtype }] of this.#own()) {
      if (dtype === "f32") continue;
      throw new SidenetError(
        "A-OPTIMIZER",
        `AdamW: ${name} is ${dtype}. It would lose small updates: train it in f32.`,
      );
    }
    this.#betas = betas;
    this.#eps = eps;
    this.#weightDecay = weightDecay;
    this.#exclude = exclude;
    this.#state = ParamStore.filled(params.device, "optimizer", (store) =>
      state === "8bit" ? fill8Bit(store, this.#own()) : fillF32(store, this.#own()),
    );
    this.#maps = state === "8bit" ? this.#state.get(MAPS) : null;
  }

  /** Steps done so far. Set it after overwriting the tensors of `exportState` with those of a checkpoint. */
  get stepsDone(): number {
    return this.#stepsDone;
  }

  /** Throws `A-OPTIMIZER` unless the count is a whole number >= 0. */
  set stepsDone(count: number) {
    checkNumber("step", count, Number.isInteger(count) && count >= 0, "a whole number >= 0");
    this.#stepsDone = count;
  }

  /**
   * Updates every parameter of its own from its gradient, which stays the caller's. Gradients of other tensors are ignored.
   * Throws `A-OPTIMIZER`, and changes nothing, when a parameter has no gradient or `lr` is not a number >= 0; and
   * `T-USE-AFTER-FREE` after `dispose()`.
   */
  step(gradients: Gradients, { lr, gradScale = null }: OptimizerStep): void {
    this.#assertOpen("step");
    checkNumber("lr", lr, Number.isFinite(lr) && lr >= 0, "a finite number >= 0");
    for (const [name, parameter] of this.#own()) {
      if (gradients.has(parameter)) continue;
      throw new SidenetError(
        "A-OPTIMIZER",
        `AdamW: ${name} has no gradient. Keep it in another store if it is not trained.`,
      );
    }
    const step = this.#stepsDone + 1;
    const [beta1, beta2] = this.#betas;
    const { ops } = this.params.device;
    for (const [name, parameter] of this.#own()) {
      const weightDecay = this.#exclude(name, parameter) ? 0 : this.#weightDecay;
      const moments = [this.#state.get(`m.${name}`), this.#state.get(`v.${name}`)] as const;
      const gradient = gradients.get(parameter)!;
      const attrs = { lr, beta1, beta2, eps: this.#eps, weightDecay, step };
      if (this.#maps) {
        const scales = [this.#state.get(`m.${name}.absmax`), this.#state.get(`v.${name}.absmax`)] as const;
        ops.adamw8(parameter, ...moments, ...scales, this.#maps, gradient, gradScale, attrs);
      } else ops.adamw(parameter, ...moments, gradient, gradScale, attrs);
    }
    this.#stepsDone = step;
  }

  /**
   * The live state, not a copy: read it before the next step. To restore a checkpoint, `assign` its values to these tensors and
   * set `stepsDone`.
   */
  exportState(): OptimizerState {
    this.#assertOpen("exportState");
    return { step: this.#stepsDone, tensors: new Map(this.#state) };
  }

  /** Frees the moments; the parameters stay. */
  dispose(): void {
    this.#state.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** The parameters that it updates. */
  #own(): [string, Tensor][] {
    return [...this.params].filter(([name, parameter]) => this.#only(name, parameter));
  }

  #assertOpen(user: string): void {
    if (!this.#state.disposed) return;
    throw new SidenetError(
      "T-USE-AFTER-FREE",
      `${user} was asked of an AdamW that was disposed, which freed its moments. Make a new one, and assign the values of a ` +
        "checkpoint to its state.",
    );
  }
}
