/** Conversion between f16 in memory and f32 in registers. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32x4, type I32, i16x8, i32x4, type V128, v128 } from "../assembler/instructions.ts";

/** The type of elements in memory. */
export type Source = "f32" | "f16";

export const bytesOf = (source: Source): 2 | 4 => (source === "f16" ? 2 : 4);

/** Loads four elements as f32. */
type Load4 = (address: I32, offset?: number) => V128;

/** Returns an emitter of loads. Its constants are set where this is called: before a loop. */
export function loader(f: FunctionBuilder, source: Source): Load4 {
  if (source === "f32") return v128.load;
  const constant = (bits: number): Local<"v128"> => f.v128(i32x4.splat(bits));
  // After a sign-extended f16 is shifted left by 13, its exponent ends at bit 27; bits 28 .. 30 are copies of the sign.
  const signAndValue = constant(0x8fffffff | 0);
  const special = constant(0x7c00); // the exponent of infinities and NaN
  const infinity = constant(0x7f800000);
  const rebias = constant(0x77800000); // times 2^112: the bias of the exponent goes from 15 to 127, of subnormals too
  return (address, offset = 0) => {
    const half = f.v128(v128.load16x4S(address, offset));
    const value = f32x4.mul(v128.and(i32x4.shl(half, 13), signAndValue), rebias);
    const isSpecial = i32x4.eq(v128.and(half, special), special);
    return v128.or(value, v128.and(isSpecial, infinity));
  };
}

/**
 * Returns an emitter that rounds four f32 to the nearest f16, ties to even, in the low 64 bits of the result. Normal results are
 * rounded by integer arithmetic; subnormal ones by adding 0.5, since the spacing of f32 at 0.5 is the smallest f16.
 */
export function toF16(f: FunctionBuilder): (x: V128) => V128 {
  const constant = (bits: number): Local<"v128"> => f.v128(i32x4.splat(bits));
  const magnitude = constant(0x7fffffff);
  const overflow = constant(0x477fefff); // the largest f32 that rounds to a finite f16
  const infinity = constant(0x7f800000);
  const tiny = constant(0x38800000); // 2^-14, the smallest normal f16
  const rebias = constant(0x38000000 - 0xfff);
  const half = constant(0x3f000000);
  const one = constant(1);
  const [infinite, quiet] = [constant(0x7c00), constant(0x7e00)];
  const zero = f.v128();
  return (x) => {
    const all = f.v128(x);
    const bits = f.v128(v128.and(all, magnitude));
    const odd = v128.and(i32x4.shrU(bits, 13), one);
    const normal = i32x4.shrU(i32x4.add(i32x4.sub(bits, rebias), odd), 13);
    const subnormal = i32x4.sub(f32x4.add(bits, half), half);
    const finite = v128.bitselect(subnormal, normal, i32x4.gtS(tiny, bits));
    const special = v128.bitselect(quiet, infinite, i32x4.gtS(bits, infinity));
    const result = v128.bitselect(special, finite, i32x4.gtS(bits, overflow));
    const sign = i32x4.shrU(v128.andNot(all, magnitude), 16);
    return i16x8.narrowU(v128.or(result, sign), zero);
  };
}
