import { ParamStore, SidenetError, STATE_BLOCK, sameShape, stateMaps, type Tensor } from "@sidenet/tensor";
import type { Gradients } from "./backward.ts";

/** How an AdamW decays its moments and the parameters. */
export interface AdamWOptions {
  /** Decay of the first and of the second moment; PyTorch's default is [0.9, 0.999]. */
  readonly betas?: readonly [number, number];
  readonly eps?: number;
  /** Decoupled: each step takes lr · weightDecay of a parameter off it. The default is 0.01, as PyTorch's. */
  readonly weightDecay?: number;
  /** Parameters that do not decay, such as norms and gates. None by default. */
  readonly exclude?: (name: string, parameter: Tensor) => boolean;
  /** Moments as f32, or as 8 bits with a scale for each 256: a quarter of the bytes. f32 by default. */
  readonly state?: "f32" | "8bit";
}

/** What one step of AdamW is told. */
export interface AdamWStep {
  /** Learning rate of this step. */
  readonly lr: number;
  /** A factor on every gradient, as a scalar on the device: what `clipGlobalNorm` returns. */
  readonly gradScale?: Tensor | null;
}

/** What a checkpoint holds: the number of steps done, and moments by `m.<parameter>` and `v.<parameter>`. */
export interface AdamWState {
  readonly step: number;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

function checkNumber(name: string, value: number, legal: boolean, wanted: string): void {
  if (legal) return;
  throw new SidenetError("A-OPTIMIZER", `AdamW: ${name} is ${value}, wanted ${wanted}.`);
}

/** Where the maps of 8-bit moments stand in the state. */
const MAPS = "maps";

/** Moments as m.<parameter> and v.<parameter>. */
function fillF32(store: ParamStore, params: ParamStore): void {
  for (const [name, { shape }] of params) {
    for (const label of [`m.${name}`, `v.${name}`]) {
      store.set(label, store.device.zeros(shape, { category: "optimizer", label }));
    }
  }
}

/** Codes as m.<parameter> and v.<parameter>, their scales with ".absmax" after it, and the maps. */
function fill8Bit(store: ParamStore, params: ParamStore): void {
  const { device } = store;
  const category = "optimizer";
  for (const [name, { shape, size }] of params) {
    for (const label of [`m.${name}`, `v.${name}`]) {
      const codes = new Uint8Array(size); // any code is 0 while the scale is
      const blocks = [Math.ceil(size / STATE_BLOCK)];
      store.set(label, device.tensor(codes, shape, { dtype: "u8", category, label }));
      const scales = `${label}.absmax`;
      store.set(scales, device.zeros(blocks, { category, label: scales }));
    }
  }
  store.set(MAPS, device.tensor(stateMaps(), [512], { category, label: MAPS }));
}

/**
 * AdamW with bias correction and decoupled weight decay (methods.md, 6; epsilon as in PyTorch: √v̂ + eps). The moments are
 * made at once and live until `dispose()`; parameters are updated in place.
 *
 * Throws `A-OPTIMIZER` for options out of range or a parameter that is not f32.
 */
export class AdamW {
  readonly params: ParamStore;
  readonly #state: ParamStore;
  readonly #betas: readonly [number, number];
  readonly #eps: number;
  readonly #weightDecay: number;
  readonly #exclude: (name: string, parameter: Tensor) => boolean;
  /** The maps of 8-bit moments; null where they are f32. */
  readonly #maps: Tensor | null;
  #stepsDone = 0;

  constructor(params: ParamStore, options: AdamWOptions = {}) {
    const {
      betas = [0.9, 0.999],
      eps = 1e-8,
      weightDecay = 0.01,
      exclude = () => false,
      state = "f32",
    } = options;
    if (state !== "f32" && state !== "8bit") {
      throw new SidenetError("A-OPTIMIZER", `AdamW: state is "${state}", wanted "f32" or "8bit".`);
    }
    for (const [i, beta] of betas.entries())
      checkNumber(`betas[${i}]`, beta, beta >= 0 && beta < 1, "0 <= beta < 1");
    checkNumber("eps", eps, eps > 0 && eps < 1, "0 < eps < 1");
    checkNumber("weightDecay", weightDecay, weightDecay >= 0 && weightDecay < 1, "0 <= weightDecay < 1");
    for (const [name, { dtype }] of params) {
      if (dtype === "f32") continue;
      throw new SidenetError(
        "A-OPTIMIZER",
        `AdamW: ${name} is ${dtype}. Small updates are lost in it: train it in f32.`,
      );
    }
    this.params = params;
    this.#betas = betas;
    this.#eps = eps;
    this.#weightDecay = weightDecay;
    this.#exclude = exclude;
    this.#state = ParamStore.filled(params.device, "optimizer", (store) =>
      state === "8bit" ? fill8Bit(store, params) : fillF32(store, params),
    );
    this.#maps = state === "8bit" ? this.#state.get(MAPS) : null;
  }

  /** Steps done so far; to be set when the values of `exportState` were overwritten with those of a checkpoint. */
  get stepsDone(): number {
    return this.#stepsDone;
  }

  /** Throws `A-OPTIMIZER` for what is no whole number of 0 or more. */
  set stepsDone(count: number) {
    checkNumber("step", count, Number.isInteger(count) && count >= 0, "a whole number >= 0");
    this.#stepsDone = count;
  }

  /**
   * Updates every parameter from its gradient, which stays the caller's. Gradients of other tensors are ignored.
   * Throws `A-OPTIMIZER`, and changes nothing, when a parameter has no gradient or `lr` is not a number >= 0; and
   * `T-USE-AFTER-FREE` after `dispose()`.
   */
  step(gradients: Gradients, { lr, gradScale = null }: AdamWStep): void {
    this.#assertOpen("step");
    checkNumber("lr", lr, Number.isFinite(lr) && lr >= 0, "a finite number >= 0");
    for (const [name, parameter] of this.params) {
      if (gradients.has(parameter)) continue;
      throw new SidenetError(
        "A-OPTIMIZER",
        `AdamW: ${name} has no gradient. Give it another store if it is not trained.`,
      );
    }
    const step = ++this.#stepsDone;
    const [beta1, beta2] = this.#betas;
    const { ops } = this.params.device;
    for (const [name, parameter] of this.params) {
      const weightDecay = this.#exclude(name, parameter) ? 0 : this.#weightDecay;
      const moments = [this.#state.get(`m.${name}`), this.#state.get(`v.${name}`)] as const;
      const gradient = gradients.get(parameter)!;
      const attrs = { lr, beta1, beta2, eps: this.#eps, weightDecay, step };
      if (this.#maps) {
        const scales = [this.#state.get(`m.${name}.absmax`), this.#state.get(`v.${name}.absmax`)] as const;
        ops.adamw8(parameter, ...moments, ...scales, this.#maps, gradient, gradScale, attrs);
      } else ops.adamw(parameter, ...moments, gradient, gradScale, attrs);
    }
  }

  /** The live state, not a copy: read it before the next step. */
  exportState(): AdamWState {
    this.#assertOpen("exportState");
    return { step: this.#stepsDone, tensors: new Map(this.#state) };
  }

  /**
   * Takes the values of a checkpoint, whose tensors stay the caller's.
   * Throws `A-OPTIMIZER`, and changes nothing, unless names and shapes are those of this optimizer's state.
   */
  importState({ step, tensors }: AdamWState): void {
    this.#assertOpen("importState");
    checkNumber("step", step, Number.isInteger(step) && step >= 0, "a whole number >= 0");
    const refuse = (problem: string) =>
      new SidenetError("A-OPTIMIZER", `AdamW: the saved state ${problem}. Is it of another adapter?`);
    for (const name of tensors.keys())
      if (!this.#state.has(name)) throw refuse(`has ${name}, which is no parameter's`);
    for (const [name, moment] of this.#state) {
      const saved = tensors.get(name);
      if (!saved) throw refuse(`lacks ${name}`);
      if (!sameShape(saved.shape, moment.shape) || (saved.dtype === "u8") !== (moment.dtype === "u8"))
        throw refuse(`has ${name} as ${saved}, wanted ${moment}`);
    }
    const { ops } = this.params.device;
    for (const [name, moment] of this.#state) {
      const saved = tensors.get(name)!;
      if (moment.dtype === "u8") {
        ops.copyCodes(moment, saved);
        continue;
      }
      ops.fill(moment, { value: 0 });
      ops.accumulate(moment, saved);
    }
    this.#stepsDone = step;
  }

  /** Frees the moments; the parameters stay. */
  dispose(): void {
    this.#state.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #assertOpen(user: string): void {
    if (!this.#state.disposed) return;
    throw new SidenetError(
      "T-USE-AFTER-FREE",
      `${user} was asked of an AdamW that was disposed, and its moments with it. Make a new one; importState gives it the ` +
        "state of a checkpoint.",
    );
  }
}
