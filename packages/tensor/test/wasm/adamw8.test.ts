import { CpuDevice, type Device, dynamicMap } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { expect, it } from "vitest";

const BLOCK = 256;
const MAPS = [dynamicMap(true), dynamicMap(false)];

/** The floats beside and at a number. */
function around(value: number): number[] {
  const floats = Float32Array.of(value, value, value);
  const bits = new Int32Array(floats.buffer);
  bits[0] -= 1;
  bits[2] += 1;
  return [...floats];
}

/** Magnitudes next to which a code may change: midpoints of the maps, ends of buckets, and the smallest numbers. */
function magnitudes(): number[] {
  const middles = MAPS.flatMap((map) => [...map.slice(1)].map((entry, i) => Math.abs(entry + map[i]) / 2));
  const ends = Array.from({ length: 24 * 64 }, (_, i) => 2 ** -Math.floor(i / 64) * (1 - (i % 64) / 128));
  return [...middles, ...middles.map(Math.sqrt), ...ends, 1e-30, 1e-42].flatMap(around);
}

/** Codes of both moments when they are g and g², in blocks whose largest gradient is 1. */
async function codesOf(device: Device, gradients: Float32Array) {
  const n = gradients.length;
  const blocks = n / BLOCK;
  const codes = () => device.tensor(new Uint8Array(n), [n], { dtype: "u8" });
  const [p, m, v] = [device.zeros([n]), codes(), codes()];
  const [mMax, vMax] = [device.zeros([blocks]), device.zeros([blocks])];
  const maps = device.tensor(Float32Array.of(...MAPS[0], ...MAPS[1]), [2 * 256]);
  const options = { beta1: 0, beta2: 0, eps: 1e-8, lr: 1e-3, weightDecay: 0, step: 1 };
  const g = device.tensor(gradients, [n]);
  device.ops.adamw8(p, m, v, mMax, vMax, maps, g, null, options);
  const read = { m: await m.read(), v: await v.read() };
  for (const tensor of [p, m, v, mMax, vMax, maps, g]) tensor.dispose();
  return read;
}

it("encodes moments beside every midpoint and every end of a bucket as the reference does", async () => {
  const values = magnitudes().filter((value) => value > 0 && value <= 1);
  const signed = [...values, ...values.map((value) => -value), 0, -0];
  const perBlock = BLOCK - 1; // and 1, the largest
  const blocks = Math.ceil(signed.length / perBlock);
  const gradients = Float32Array.from({ length: blocks * BLOCK }, (_, i) =>
    i % BLOCK === 0 ? 1 : (signed[Math.floor(i / BLOCK) * perBlock + (i % BLOCK) - 1] ?? 0),
  );
  using wasm = await openNodeWasm({ poison: true });
  expect(await codesOf(wasm, gradients)).toEqual(await codesOf(new CpuDevice(), gradients));
});
