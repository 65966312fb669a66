import { Float16Array } from "@petamoriken/float16";
import { float16ToFloat32, float32ToFloat16 } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { asFloat32, asUint16, bfloat16ToFloat32, float32ToBfloat16 } from "../src/formats/float-codec.ts";

const everyWord = Uint16Array.from({ length: 65536 }, (_, bits) => bits);
const bitsOf = (values: Float32Array) => new Uint32Array(values.buffer, values.byteOffset, values.length);
const isNaNHalf = (bits: number) => (bits & 0x7fff) > 0x7c00;

/** Any float32, infinities, subnormals and NaN included. */
const anyFloat32 = fc
  .array(fc.float(), { minLength: 1, maxLength: 50 })
  .map((values) => Float32Array.from(values));
/** Float32 in and around the range of float16, where rounding happens. */
const nearHalf = fc
  .array(fc.tuple(fc.integer({ min: 0, max: 65535 }), fc.integer({ min: -40960, max: 40960 })), {
    minLength: 1,
  })
  .map((pairs) => {
    const words = bitsOf(float16ToFloat32(Uint16Array.from(pairs, ([half]) => half)));
    return new Float32Array(Uint32Array.from(words, (word, i) => word + (pairs[i]?.[1] ?? 0)).buffer);
  });

describe("float16", () => {
  it("decodes all 65,536 values as another library does", () => {
    const expected = new Float16Array(everyWord.buffer.slice(0));
    const values = float16ToFloat32(everyWord);
    expect(everyWord.every((bits) => Object.is(values[bits], expected[bits]))).toBe(true);
  });

  it("comes back from float32 bit for bit", () => {
    const back = float32ToFloat16(float16ToFloat32(everyWord));
    expect(everyWord.every((bits) => (isNaNHalf(bits) ? isNaNHalf(back[bits]) : back[bits] === bits))).toBe(
      true,
    );
  });

  it("rounds to nearest even, as another library does", () => {
    fc.assert(
      fc.property(fc.oneof(anyFloat32, nearHalf), (values) => {
        const expected = new Uint16Array(new Float16Array(values).buffer);
        const bits = float32ToFloat16(values);
        return bits.every((half, i) => (Number.isNaN(values[i]) ? isNaNHalf(half) : half === expected[i]));
      }),
    );
  });
});

describe("bfloat16", () => {
  it("is the upper half of a float32", () => {
    const words = bitsOf(bfloat16ToFloat32(everyWord));
    expect(everyWord.every((bits) => words[bits] === bits * 65536)).toBe(true);
  });

  it("rounds to a nearest neighbour, ties to even, and keeps NaN", () => {
    fc.assert(
      fc.property(anyFloat32, (values) => {
        const back = bfloat16ToFloat32(float32ToBfloat16(values));
        return values.every((value, i) => {
          if (Number.isNaN(value)) return Number.isNaN(back[i]);
          const word = bitsOf(values)[i];
          const lower = Math.floor(word / 65536);
          const rest = word % 65536;
          const up = rest > 32768 || (rest === 32768 && lower % 2 === 1);
          return bitsOf(back)[i] === ((lower + (up ? 1 : 0)) * 65536) % 2 ** 32;
        });
      }),
    );
  });
});

it("reads words from bytes that start anywhere", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), fc.integer({ min: 0, max: 7 }), (content, shift) => {
      const padded = new Uint8Array(content.length + shift);
      padded.set(content, shift);
      const view = new DataView(padded.buffer, shift);
      const bytes = padded.subarray(shift);
      expect([...asUint16(bytes)]).toEqual(
        Array.from({ length: content.length >> 1 }, (_, i) => view.getUint16(2 * i, true)),
      );
      expect([...asFloat32(bytes)]).toEqual(
        Array.from({ length: content.length >> 2 }, (_, i) => view.getFloat32(4 * i, true)),
      );
    }),
  );
});
