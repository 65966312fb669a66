import { float16Table, float32ToFloat16 } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { float32ToBfloat16 } from "../src/formats/float-codec.ts";
import { dequantize } from "../src/formats/gguf-quants.ts";
import { GGUF_TYPES } from "../src/formats/gguf-types.ts";

/** Bits `[from, from + count)` of a block, lowest bit of the first byte first. */
function bits(block: Uint8Array, from: number, count: number): number {
  let value = 0;
  for (let i = 0; i < count; i++) {
    const bit = from + i;
    value += ((block[bit >> 3] >> (bit & 7)) & 1) * 2 ** i;
  }
  return value;
}

const half = (block: Uint8Array, at: number) => float16Table()[bits(block, at * 8, 16)];
const signed = (byte: number) => (byte > 127 ? byte - 256 : byte);

/**
 * Element i of one block, each format written down a second time as a formula over bit positions: slow, and with nothing
 * in common with the decoders but the description of the format.
 */
const ELEMENT: Readonly<Record<string, (block: Uint8Array, i: number) => number>> = {
  Q4_0: (b, i) => half(b, 0) * (bits(b, 16 + 8 * (i % 16) + (i < 16 ? 0 : 4), 4) - 8),
  Q4_1: (b, i) => half(b, 0) * bits(b, 32 + 8 * (i % 16) + (i < 16 ? 0 : 4), 4) + half(b, 2),
  Q5_0: (b, i) =>
    half(b, 0) * (bits(b, 48 + 8 * (i % 16) + (i < 16 ? 0 : 4), 4) + 16 * bits(b, 16 + i, 1) - 16),
  Q5_1: (b, i) =>
    half(b, 0) * (bits(b, 64 + 8 * (i % 16) + (i < 16 ? 0 : 4), 4) + 16 * bits(b, 32 + i, 1)) + half(b, 2),
  Q8_0: (b, i) => half(b, 0) * signed(b[2 + i]),
  Q4_K: (b, i) => superblock(b, i, bits(b, 8 * (16 + 32 * (i >> 6) + (i % 32)) + 4 * ((i >> 5) % 2), 4)),
  Q5_K: (b, i) => {
    const low = bits(b, 8 * (48 + 32 * (i >> 6) + (i % 32)) + 4 * ((i >> 5) % 2), 4);
    return superblock(b, i, low + 16 * bits(b, 8 * (16 + (i % 32)) + (i >> 5), 1));
  },
  Q6_K: (b, i) => {
    const j = i % 128;
    const low = bits(b, 8 * (64 * (i >> 7) + (j % 64)) + (j < 64 ? 0 : 4), 4);
    const high = bits(b, 8 * (128 + 32 * (i >> 7) + (j % 32)) + 2 * (j >> 5), 2);
    return half(b, 208) * signed(b[192 + (i >> 4)]) * (low + 16 * high - 32);
  },
};

/** d · scale · q - dmin · min with the 6-bit scales and minima of the group of 32. */
function superblock(b: Uint8Array, i: number, q: number): number {
  const g = i >> 5;
  const scale = g < 4 ? bits(b, 8 * (4 + g), 6) : bits(b, 8 * (8 + g), 4) + 16 * bits(b, 8 * g + 6, 2);
  const min =
    g < 4 ? bits(b, 8 * (8 + g), 6) : bits(b, 8 * (8 + g) + 4, 4) + 16 * bits(b, 8 * (4 + g) + 6, 2);
  return half(b, 0) * scale * q - half(b, 2) * min;
}

const typeOf = (name: string) => {
  for (const type of GGUF_TYPES.values()) if (type.name === name) return type;
  throw new Error(name);
};

describe.each(Object.keys(ELEMENT))("%s", (name) => {
  const { blockBytes, blockElements } = typeOf(name);
  const block = fc.uint8Array({ minLength: blockBytes, maxLength: blockBytes });

  it("decodes every element as its formula says, to the last float32 bit", () => {
    fc.assert(
      fc.property(fc.array(block, { minLength: 1, maxLength: 3 }), (blocks) => {
        const bytes = Uint8Array.from(blocks.flatMap((one) => [...one]));
        const expected = blocks.flatMap((one) =>
          Array.from({ length: blockElements }, (_, i) => Math.fround(ELEMENT[name](one, i))),
        );
        expect([...dequantize(name, bytes, "t")]).toEqual(expected);
      }),
    );
  });

  it("reads from any offset of a larger buffer", () => {
    fc.assert(
      fc.property(block, fc.integer({ min: 1, max: 7 }), (one, shift) => {
        const padded = new Uint8Array(one.length + shift);
        padded.set(one, shift);
        expect(dequantize(name, padded.subarray(shift), "t")).toEqual(dequantize(name, one, "t"));
      }),
    );
  });
});

describe("quantizing and back", () => {
  const values = fc
    .array(fc.float({ min: -8, max: 8, noNaN: true }), { minLength: 32, maxLength: 32 })
    .map((list) => Float32Array.from(list));

  it("is off by at most half a step in Q8_0", () => {
    fc.assert(
      fc.property(values, (list) => {
        const [scale] = float32ToFloat16(Float32Array.of(Math.max(...list.map(Math.abs)) / 127));
        const step = float16Table()[scale];
        const codes = list.map((value) =>
          step === 0 ? 0 : Math.max(-127, Math.min(127, Math.round(value / step))),
        );
        const bytes = Uint8Array.of(scale & 255, scale >> 8, ...codes);
        const back = dequantize("Q8_0", bytes, "t");
        // rounding the scale down to float16 moves the largest codes by up to 127 · 2^-11 of a step
        return list.every((value, i) => Math.abs(value - back[i]) <= 0.57 * step + 127 * 2 ** -25);
      }),
    );
  });

  it("is exact for floats", () => {
    fc.assert(
      fc.property(values, (list) => {
        const bytesOf = (words: Uint16Array) => new Uint8Array(words.buffer);
        const brain = float32ToBfloat16(list);
        const halves = float32ToFloat16(list);
        expect(dequantize("F32", new Uint8Array(list.buffer), "t")).toEqual(list);
        expect(float32ToBfloat16(dequantize("BF16", bytesOf(brain), "t"))).toEqual(brain);
        expect(float32ToFloat16(dequantize("F16", bytesOf(halves), "t"))).toEqual(halves);
      }),
    );
  });
});

it("names a type it cannot decode, and its tensor", () => {
  expect(() => dequantize("IQ2_XXS", new Uint8Array(66), "blk.0.ffn_up.weight")).toThrow(
    /L-GGUF-TYPE.*blk\.0\.ffn_up\.weight.*IQ2_XXS/,
  );
  expect(() => dequantize("constructor", new Uint8Array(0), "t")).toThrow(/L-GGUF-TYPE/);
});
