import { CpuDevice, Random } from "@sidenet/tensor";
import fc from "fast-check";
import { expect, it } from "vitest";
import { philox } from "../src/random.ts";

// Known answers of the authors' own library (Random123, kat_vectors).
it.each([
  [
    [0, 0, 0, 0],
    [0, 0],
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  ],
  [
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    [0xffffffff, 0xffffffff],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    [0xa4093822, 0x299f31d0],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
] as const)("philox of counter %j under key %j", (counter, key, words) => {
  expect(philox([...counter] as [number, number, number, number], [...key] as [number, number])).toEqual([
    ...words,
  ]);
});

it("normals have mean 0 and the deviation asked for", () => {
  const values = new Random(7).normals(200_000, 0.02);
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length;
  expect(Math.abs(mean)).toBeLessThan(2e-4);
  expect(Math.sqrt(variance)).toBeCloseTo(0.02, 3);
});

it("a shuffle is a permutation, the same for the same seed and stream", () => {
  fc.assert(
    fc.property(fc.nat({ max: 200 }), fc.nat(), fc.nat({ max: 9 }), (size, seed, stream) => {
      const items = Array.from({ length: size }, (_, i) => i);
      const once = new Random(seed, stream).shuffle([...items]);
      expect(new Random(seed, stream).shuffle([...items])).toEqual(once);
      expect(once.sort((a, b) => a - b)).toEqual(items);
    }),
  );
});

it("rows draw the numbers of the generator: position i of stream s is word i", async () => {
  const device = new CpuDevice();
  const x = device.zeros([10]);
  device.ops.uniform(x, { seed: 7, stream: 3, offset: 4 });
  const random = new Random(7, 3);
  const words = Array.from({ length: 14 }, () => random.word()).slice(4);
  expect([...(await x.read())]).toEqual(words.map((word) => ((word >>> 9) + 0.5) / 2 ** 23));
  expect(() => device.ops.uniform(x, { offset: 3 })).toThrow(/multiple of 4/);
  expect(() => device.ops.dropout(x, { rate: 1 })).toThrow(/rate 1/);
  x.dispose();
});
