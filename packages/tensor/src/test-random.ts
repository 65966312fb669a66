import type { Shape } from "./shape.ts";

/** A small deterministic generator for drawing test cases: mulberry32 over the seed. Not for training. */
export class TestRandom {
  #state: number;
  readonly scale: number;

  /** `scale` in 0..1 narrows every range towards its lower end, which is how a failing case shrinks. */
  constructor(seed: number, scale = 1) {
    this.#state = seed >>> 0;
    this.scale = scale;
  }

  /** Uniform in [0, 1). */
  unit(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** An integer in lo..hi, both included. */
  int(lo: number, hi: number): number {
    return lo + Math.floor(this.unit() * ((hi - lo) * this.scale + 1));
  }

  /** One of the choices, with equal probability. */
  oneOf<T>(choices: readonly T[]): T {
    return choices[this.int(0, choices.length - 1)];
  }

  /** True with this probability. */
  chance(probability: number): boolean {
    return this.unit() < probability;
  }

  /** A normal number of mean 0 and standard deviation 1. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.unit())) * Math.cos(2 * Math.PI * this.unit());
  }

  /** Up to `maxAxes` axes whose product is at most `maxSize`. */
  shape(maxSize: number, maxAxes = 3): Shape {
    const axes: number[] = [];
    let left = maxSize;
    for (let axis = this.int(0, maxAxes); axis > 0; axis--) {
      const extent = this.int(0, left);
      axes.push(extent);
      left = Math.floor(left / Math.max(extent, 1));
    }
    return axes;
  }

  /** Normal numbers of mean 0. */
  normals(size: number, deviation = 1): Float64Array {
    return Float64Array.from({ length: size }, () => deviation * this.normal());
  }

  /** Normal values moved away from 0 by `distance`: where a function has a kink or a pole there. */
  awayFromZero(size: number, distance: number): Float64Array {
    return Float64Array.from(this.normals(size), (x) => (x < 0 ? x - distance : x + distance));
  }

  /** Values with a spacing of 0.01 in random order: no two are equal, and a small step changes no order. */
  distinct(size: number): Float64Array {
    const values = Float64Array.from({ length: size }, (_, i) => (i - (size >> 1)) / 100);
    for (let i = size - 1; i > 0; i--) {
      const other = Math.floor(this.unit() * (i + 1));
      [values[i], values[other]] = [values[other], values[i]];
    }
    return values;
  }

  /** Integers from `lo` to `hi`, both included. */
  ints(size: number, lo: number, hi: number): Int32Array {
    return Int32Array.from({ length: size }, () => this.int(lo, hi));
  }
}
