import { ParamStore, SidenetError, sameShape, type Tensor } from "@sidenet/tensor";
import type { Gradients } from "./tape.ts";

export interface AdamWOptions {
  /** Decay of the first and of the second moment; PyTorch's default is [0.9, 0.999]. */
  readonly betas?: readonly [number, number];
  readonly eps?: number;
  /** Decoupled: each step takes lr · weightDecay of a parameter off it. The default is 0.01, as PyTorch's. */
  readonly weightDecay?: number;
  /** Parameters that do not decay, such as norms and gates. None by default. */
  readonly exclude?: (name: string, parameter: Tensor) => boolean;
}

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

/**
 * AdamW with bias correction and decoupled weight decay (methods.md, 6; epsilon as in PyTorch: √v̂ + eps). The moments are
 * f32, made at once, and live until `dispose()`; parameters are updated in place.
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
  #stepsDone = 0;

  constructor(params: ParamStore, options: AdamWOptions = {}) {
    const { betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01, exclude = () => false } = options;
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
    this.#state = new ParamStore(params.device, "optimizer");
    try {
      for (const [name, { shape }] of params) {
        for (const moment of ["m", "v"]) {
          const label = `${moment}.${name}`;
          this.#state.set(label, params.device.zeros(shape, { category: "optimizer", label }));
        }
      }
    } catch (error) {
      this.#state.dispose();
      throw error;
    }
  }

  /** Steps done so far. */
  get stepsDone(): number {
    return this.#stepsDone;
  }

  /**
   * Updates every parameter from its gradient, which stays the caller's. Gradients of other tensors are ignored.
   * Throws `A-OPTIMIZER`, and changes nothing, when a parameter has no gradient or `lr` is not a number >= 0.
   */
  step(gradients: Gradients, { lr, gradScale = null }: AdamWStep): void {
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
      const attrs = { lr, beta1, beta2, eps: this.#eps, weightDecay, step };
      ops.adamw(parameter, ...moments, gradients.get(parameter)!, gradScale, attrs);
    }
  }

  /** The live state, not a copy: read it before the next step. */
  exportState(): AdamWState {
    return { step: this.#stepsDone, tensors: new Map(this.#state) };
  }

  /**
   * Takes the values of a checkpoint, whose tensors stay the caller's.
   * Throws `A-OPTIMIZER`, and changes nothing, unless names and shapes are those of this optimizer's state.
   */
  importState({ step, tensors }: AdamWState): void {
    checkNumber("step", step, Number.isInteger(step) && step >= 0, "a whole number >= 0");
    const refuse = (problem: string) =>
      new SidenetError("A-OPTIMIZER", `AdamW: the saved state ${problem}. Is it of another adapter?`);
    for (const name of tensors.keys())
      if (!this.#state.has(name)) throw refuse(`has ${name}, which is no parameter's`);
    for (const [name, moment] of this.#state) {
      const saved = tensors.get(name);
      if (!saved) throw refuse(`lacks ${name}`);
      if (!sameShape(saved.shape, moment.shape)) throw refuse(`has ${name} as ${saved}, wanted ${moment}`);
    }
    const { ops } = this.params.device;
    for (const [name, moment] of this.#state) {
      ops.fill(moment, { value: 0 });
      ops.accumulate(moment, tensors.get(name)!);
    }
    this.#stepsDone = step;
  }

  /** Frees the moments; the parameters stay. */
  dispose(): void {
    this.#state.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
