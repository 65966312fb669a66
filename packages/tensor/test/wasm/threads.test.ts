import {
  CpuDevice,
  compareOutcomes,
  drawCase,
  type HostArray,
  opNames,
  rowOf,
  runCase,
  type Shape,
  type Tensor,
  TestRandom,
  type WasmDevice,
} from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openWasm } from "../../src/wasm/open.ts";
import { CONFIGURATIONS, nameOf, open, THREADS } from "./configurations.ts";

const CASES = 8;

describe.each(CONFIGURATIONS.map((each) => [nameOf(each), each] as const))("with %s", (_, configuration) => {
  let device: WasmDevice;
  const reference = new CpuDevice({ precision: "f64" });
  beforeAll(async () => {
    device = await open(configuration);
  });
  afterAll(() => device?.dispose());

  it("every op agrees with its reference", async () => {
    expect(device.threads).toBe(configuration.threads);
    expect(device.label).toContain(
      configuration.threads === 1 ? "one thread" : `${configuration.threads} threads`,
    );
    expect(device.label.includes("fused")).toBe(configuration.relaxedSimd);
    const problems: string[] = [];
    for (const name of opNames) {
      for (let seed = 1; seed <= CASES; seed++) {
        const drawn = drawCase(rowOf(name), new TestRandom(seed), seed % 4 === 0 ? "f16" : "f32");
        const expected = await runCase(reference, name, drawn);
        const problem = compareOutcomes(name, drawn, await runCase(device, name, drawn), expected);
        if (problem !== null) problems.push(`${problem} (seed ${seed})`);
      }
    }
    expect(problems).toEqual([]);
  });
});

/** Ops on operands that are large enough for every thread to get a part, by name: all outputs, one after the other. */
async function largeOps(device: WasmDevice): Promise<Map<string, Uint8Array>> {
  const pick = new TestRandom(5);
  const { ops } = device;
  const bits = new Map<string, Uint8Array>();
  const keep = async (name: string, tensors: readonly Tensor[]) => {
    const parts: HostArray[] = [];
    for (const tensor of tensors) parts.push(await tensor.read());
    bits.set(
      name,
      Uint8Array.from(
        parts.flatMap((part) => [...new Uint8Array(part.buffer, part.byteOffset, part.byteLength)]),
      ),
    );
    for (const tensor of tensors) tensor.dispose();
  };
  const random = (...shape: number[]) => device.tensor(pick.normals(shape.reduce((a, b) => a * b, 1)), shape);
  const ints = (shape: Shape, most: number) =>
    device.tensor(
      pick.ints(
        shape.reduce((a, b) => a * b, 1),
        0,
        most,
      ),
      shape,
      { dtype: "i32" },
    );

  const inputs = {
    x: random(301, 200),
    w: random(173, 200),
    wide: random(301, 173),
    vector: random(1, 200),
    gain: random(200),
    heads: random(2, 150, 6, 32),
    keys: random(2, 150, 2, 32),
    values: random(2, 150, 2, 32),
    targets: ints([301], 172),
    ids: ints([301], 172),
  };
  const { x, w, wide, vector, gain, heads, keys, values, targets, ids } = inputs;
  const half = ops.cast(w, { to: "f16" });
  await keep("linear", [
    ops.linear(x, w),
    ops.linear(x, half),
    ops.linear(vector, w),
    ops.linear(vector, half),
  ]);
  await keep("matmul", [ops.matmul(wide, w), ops.matmulTN(x, wide), ops.matmulNT(x, w)]);
  await keep("rows", [
    ops.rmsNorm(x, gain),
    ops.softmax(x),
    ops.silu(x),
    ops.sum(x, { axis: 0 }),
    ops.sum(x),
  ]);
  const { y, lse } = device.run("attention", [heads, keys, values], {}, ["lse"]);
  const dy = random(2, 150, 6, 32);
  const gradients = [dy, heads, keys, values, y, lse];
  await keep("attentionBackward", [
    ...Object.values(device.run("attentionBackwardQ", gradients)),
    ...Object.values(device.run("attentionBackwardKV", gradients)),
  ]);
  await keep("attention", [y, lse]);
  await keep("loss", Object.values(device.run("lmHeadLoss", [x, w, targets], { chunkTokens: 64 }, ["dh"])));
  await keep("embedding", [ops.embedding(ids, w), ops.embeddingBackward(x, ids, { rows: 173 })]);
  const { codes, absmax } = device.run("nf4Quantize", [w, inputs.gain]);
  await keep("nf4", [ops.nf4Linear(x, codes, gain, absmax, null, null, { out: 173 })]);
  for (const tensor of [...Object.values(inputs), half, dy, codes, absmax]) tensor.dispose();
  return bits;
}

describe.each([true, false])(
  "the number of threads changes no bit (fused multiply-add: %s)",
  (relaxedSimd) => {
    it("of any op that they share", async () => {
      const results: Map<string, Uint8Array>[] = [];
      for (const threads of THREADS) {
        const device = await open({ threads, relaxedSimd });
        results.push(await largeOps(device));
        const { shared, dispatches } = device.statistics();
        expect(dispatches).toBeGreaterThan(30);
        if (threads > 1) expect(shared).toBeGreaterThan(15);
        else expect(shared).toBe(0);
        device.dispose();
      }
      for (const other of results.slice(1)) {
        for (const [name, bytes] of results[0]) {
          expect(Buffer.compare(bytes, other.get(name)!), name).toBe(0);
        }
      }
    });
  },
);

describe("threads", () => {
  it("share thousands of dispatches one after the other, sleeping in between", async () => {
    const device = await openNodeWasm({ threads: 4 });
    const ones = device.tensor(new Float32Array(200_000).fill(1), [200_000]);
    const x = device.empty([200_000]);
    for (let round = 0; round < 600; round++) {
      device.ops.fill(x, { value: round });
      device.ops.accumulate(x, ones);
      if (round % 150 === 0) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const values = await x.read();
    expect(values.every((value) => value === 600)).toBe(true);
    for (const tensor of [ones, x]) tensor.dispose();
    device.dispose();
  });

  it("end with the device, which says so afterwards", async () => {
    const device = await openNodeWasm({ threads: 3 });
    const x = device.tensor([1, 2, 3, 4], [4]);
    device.dispose();
    device.dispose(); // a second time is no mistake
    expect(() => device.ops.neg(x)).toThrow(/T-DEVICE-LOST/);
    await expect(x.read()).rejects.toThrow(/disposed/);
    x.dispose();
  });

  it("are told to be too many where the system does not start them, and those that started end", async () => {
    const ended: number[] = [];
    const spawn = async (_module: object, _memory: object, index: number) => {
      if (index === 2) throw new Error("EAGAIN");
      return { terminate: () => ended.push(index) };
    };
    const opening = openWasm({ spawn, cores: 4, mayWait: true });
    await expect(opening).rejects.toThrow(
      /\[T-THREADS\] 2 of 3 further threads started: EAGAIN.*SIDENET_THREADS=1/,
    );
    expect(ended).toEqual([1, 3]);
  });
});
