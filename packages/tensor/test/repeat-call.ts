/** Calls of `Device.repeat` for tests. */
import { type Device, Random, type Tensor } from "@sidenet/tensor";
import { expect } from "vitest";

export const N = 32;
export const OWNER = {};

export const matrix = (seed: number): Float32Array => {
  const random = new Random(seed, 0);
  return Float32Array.from({ length: N * N }, () => random.uniform() - 0.5);
};

export async function readAndFree(outputs: ReadonlyMap<unknown, Tensor>): Promise<number[][]> {
  const values = await Promise.all([...outputs.values()].map(async (tensor) => [...(await tensor.read())]));
  for (const tensor of outputs.values()) tensor.dispose();
  return values;
}

export const input = (device: Device, seed: number) => device.tensor(matrix(seed), [N, N]);
export type Body = (x: Tensor) => ReadonlyMap<string, Tensor>;
export const square =
  (device: Device): Body =>
  (x) =>
    new Map([["y", device.ops.mul(x, x)]]);

/** `Device.repeat` of a body that consumes its one input. */
export const repeat = <K>(
  device: Device,
  key: string,
  x: Tensor,
  body: (x: Tensor) => ReadonlyMap<K, Tensor>,
  owner: object = OWNER,
) => device.repeat({ owner, key, inputs: [x] }, () => body(x), { consume: [x] });

/** Calls `repeat` with inputs of these seeds and checks each result against the body's own. */
export async function check(device: Device, key: string, seeds: readonly number[], body: Body) {
  for (const seed of seeds) {
    const x = input(device, seed);
    const again = await readAndFree(repeat(device, key, x, body));
    expect(x.disposed).toBe(true);
    const y = input(device, seed);
    expect(again, `seed ${seed}`).toEqual(await readAndFree(device.scope(() => body(y), { consume: [y] })));
  }
}
