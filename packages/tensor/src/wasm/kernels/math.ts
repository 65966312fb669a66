/**
 * Emitters of functions of vectors; exp is exact to 2 and log to 3 units in the last place, after Cephes (Moshier, expf and logf).
 * Each `...Of` sets the constants where it is called, which should be before a loop, and returns the emitter.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32x4, i32x4, type V128, v128 } from "../assembler/instructions.ts";
import { splat } from "./vectors.ts";

export type Function1 = (x: V128) => V128;

const bits = (f: FunctionBuilder, value: number) => f.v128(i32x4.splat(value));

const LOG2_E = Math.LOG2E;
/** log 2 as a sum; the first term has few bits, so that n · LN2_HIGH is exact. */
const LN2_HIGH = 0.693359375;
const LN2_LOW = -2.12194440054691e-4;
/** 1.5 · 2^23: added to a number, it leaves the nearest integer in the lowest bits. */
const TO_INTEGER = 12582912;
/** Between these, e^x is a normal number. */
const EXP_MIN = -87.3;
const EXP_MAX = 88;
const EXP_POLYNOMIAL = [
  1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
];

/** e^x, with x clamped to -87.3 .. 88: 2^n e^r with n the nearest integer to x / log 2, and a polynomial of r = x - n log 2. */
export function expOf(f: FunctionBuilder): Function1 {
  const [min, max, log2e] = [EXP_MIN, EXP_MAX, LOG2_E].map((value) => splat(f, value));
  const [magic, high, low, one] = [TO_INTEGER, -LN2_HIGH, -LN2_LOW, 1].map((value) => splat(f, value));
  const [first, ...rest] = EXP_POLYNOMIAL.map((value) => splat(f, value));
  return (x) => {
    const clamped = f.v128(f32x4.pmax(f32x4.pmin(x, max), min));
    const shifted = f.v128(f.madd(clamped, log2e, magic));
    const n = f.v128(f32x4.sub(shifted, magic));
    const r = f.v128(f.madd(n, low, f.madd(n, high, clamped)));
    let polynomial: V128 = first;
    for (const coefficient of rest) polynomial = f.madd(polynomial, r, coefficient);
    const value = f32x4.add(f.madd(polynomial, f32x4.mul(r, r), r), one);
    return i32x4.add(value, i32x4.shl(shifted, 23)); // times 2^n
  };
}

/** Coefficients of r, r², ... in 2^r for |r| <= 1/2: off by at most 10^-7, and exactly 1 at 0. */
const POWER_POLYNOMIAL = [0.693146978, 0.240222421, 5.55073374e-2, 9.67151266e-3, 1.32647269e-3];

/**
 * e^x for weights of attention, x <= 88 and clamped to -87.3 from below, with two thirds of the instructions and of the latency of
 * `expOf`. The error is |x| + 3 units in the last place: less than two units in the last place of the largest weight, which is 1.
 */
export function attentionExpOf(f: FunctionBuilder): Function1 {
  const [min, log2e, magic] = [EXP_MIN, LOG2_E, TO_INTEGER].map((value) => splat(f, value));
  const [c0, c1, c2, c3, c4, c5] = [1, ...POWER_POLYNOMIAL].map((value) => splat(f, value));
  return (x) => {
    const clamped = f.v128(f32x4.pmax(x, min));
    const shifted = f.v128(f.madd(clamped, log2e, magic));
    const r = f.v128(f.madd(clamped, log2e, f32x4.sub(magic, shifted)));
    const square = f.v128(f32x4.mul(r, r));
    const upper = f.madd(f.madd(c5, r, c4), square, f.madd(c3, r, c2));
    return i32x4.add(f.madd(upper, square, f.madd(c1, r, c0)), i32x4.shl(shifted, 23));
  };
}

/** 1 / (1 + e^-x): no infinity on the way, as e^-x stops at e^88; below -88, where that would be too large, 0. */
export function sigmoidOf(f: FunctionBuilder): Function1 {
  const exp = expOf(f);
  const one = splat(f, 1);
  const min = splat(f, -EXP_MAX);
  return (x) => {
    const value = f.v128(x);
    const quotient = f32x4.div(one, f32x4.add(one, exp(f32x4.neg(value))));
    return v128.andNot(quotient, f32x4.lt(value, min));
  };
}

const SQRT_HALF = Math.SQRT1_2;
const LOG_POLYNOMIAL = [
  7.0376836292e-2, -1.151461031e-1, 1.167699874e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
  2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
];

/** log x; x below 2^-126, the smallest normal number, counts as that, and a NaN stays one. */
export function logOf(f: FunctionBuilder): Function1 {
  const tiny = bits(f, 0x00800000);
  const mantissa = bits(f, 0x007fffff);
  const half = splat(f, 0.5);
  const [one, root, high, low, minusHalf] = [1, SQRT_HALF, LN2_HIGH, LN2_LOW, -0.5].map((v) => splat(f, v));
  const bias = bits(f, 126);
  const [first, ...rest] = LOG_POLYNOMIAL.map((value) => splat(f, value));
  return (x) => {
    const value = f.v128(x);
    const clamped = f.v128(f32x4.pmax(value, tiny));
    const m = f.v128(v128.or(v128.and(clamped, mantissa), half)); // 0.5 .. 1
    const below = f.v128(f32x4.lt(m, root));
    const exponent = i32x4.sub(i32x4.shrU(clamped, 23), bias);
    const e = f.v128(f32x4.sub(f32x4.convert(exponent), v128.and(below, one)));
    const z = f.v128(f32x4.sub(f32x4.add(m, v128.and(below, m)), one));
    const square = f.v128(f32x4.mul(z, z));
    let polynomial: V128 = first;
    for (const coefficient of rest) polynomial = f.madd(polynomial, z, coefficient);
    const tail = f.madd(e, low, f32x4.mul(f32x4.mul(polynomial, z), square));
    const log = f.madd(e, high, f32x4.add(z, f.madd(square, minusHalf, tail)));
    return v128.bitselect(log, value, f32x4.eq(value, value));
  };
}

/**
 * tanh x from q = e^-2|x|, which neither overflows nor cancels: (1 - q) / (1 + q) with the sign of x. Below 1/4, where
 * 1 - q would cancel, by the series of tanh.
 */
export function tanhOf(f: FunctionBuilder): Function1 {
  const exp = expOf(f);
  const [one, minusTwo, quarter] = [1, -2, 0.25].map((value) => splat(f, value));
  const [c0, c1, c2, c3] = [-0.33333333, 0.13333333, -0.053968254, 0.021869488].map((v) => splat(f, v));
  const signBit = bits(f, -0x80000000);
  return (x) => {
    const value = f.v128(x);
    const size = f.v128(f32x4.abs(value));
    const square = f.v128(f32x4.mul(value, value));
    const series = f.madd(f.madd(f.madd(c3, square, c2), square, c1), square, c0);
    const near = f.madd(f32x4.mul(value, square), series, value);
    const q = f.v128(exp(f32x4.mul(size, minusTwo)));
    const far = f32x4.div(f32x4.sub(one, q), f32x4.add(one, q));
    const signed = v128.or(far, v128.and(value, signBit));
    return v128.bitselect(near, signed, f32x4.lt(size, quarter));
  };
}

/** erfc(z) = (c0 + t (c1 + ...)) t e^-z² with t = 1 / (1 + p z): Abramowitz and Stegun 7.1.26, off by 1.5e-7. */
const ERFC_POLYNOMIAL = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
const ERFC_P = 0.3275911;

/** Φ(x) of the normal distribution, off by 7.5e-8, and e^-x²/2. |x| counts as 12.7 at most, where Φ is 0 or 1. */
export function normalOf(f: FunctionBuilder): (x: Local<"v128">) => { cdf: V128; bell: Local<"v128"> } {
  const exp = expOf(f);
  const [one, half, maxZ, root, p] = [1, 0.5, 9, Math.SQRT1_2, ERFC_P].map((value) => splat(f, value));
  const [first, ...rest] = ERFC_POLYNOMIAL.map((value) => splat(f, value));
  const zero = f.v128();
  return (x) => {
    const z = f.v128(f32x4.pmin(f32x4.mul(f32x4.abs(x), root), maxZ));
    const t = f.v128(f32x4.div(one, f.madd(z, p, one)));
    let polynomial: V128 = first;
    for (const coefficient of rest) polynomial = f.madd(polynomial, t, coefficient);
    const bell = f.v128(exp(f32x4.neg(f32x4.mul(z, z))));
    const tail = f.v128(f32x4.mul(f32x4.mul(f32x4.mul(polynomial, t), bell), half));
    return { cdf: v128.bitselect(tail, f32x4.sub(one, tail), f32x4.lt(x, zero)), bell };
  };
}
