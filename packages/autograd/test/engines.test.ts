/** A whole step on WebGPU and on WebAssembly against the reference: saved tensors, pooled memory and gradients that share it. */
import { CpuDevice, type Device, ParamStore, type Tensor, TestRandom } from "@sidenet/tensor";
import { openNodeWasm, openNodeWebGpu } from "@sidenet/tensor/node";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { clipGlobalNorm, Tape } from "../src/index.ts";
import { C, decoderStep } from "./decoder-step.ts";
import { expectClose, expectNoLeaks } from "./support.ts";

/** f16 activations under f32 parameters, then f32 activations under a frozen f16 weight: what mixed rules must take. */
async function mixedStep(device: Device): Promise<Map<string, ArrayLike<number>>> {
  const pick = new TestRandom(9);
  const store = new ParamStore(device, "adapter");
  for (const [name, shape] of [
    ["w", [10, C]],
    ["bias", [10]],
    ["gain", [C]],
  ] as const) {
    const size = shape.reduce((a, b) => a * b, 1);
    store.add(name, device.tensor(pick.normals(size, 0.3), shape));
  }
  const tape = new Tape(device, store);
  const loss = device.scope(() => {
    const x = device.tensor(Float64Array.from(pick.normals(7 * C), roundToHalf), [7, C], { dtype: "f16" });
    const frozen = device.tensor(Float64Array.from(pick.normals(50), roundToHalf), [5, 10], { dtype: "f16" });
    const h = tape.linear(tape.rmsNorm(x, store.get("gain")), store.get("w"), store.get("bias"));
    const y = tape.linear(tape.cast(tape.add(h, tape.silu(h)), { to: "f32" }), frozen);
    return tape.sum(tape.mul(y, y));
  });
  const gradients = tape.backward(loss);
  const values = new Map<string, ArrayLike<number>>([["loss", await loss.read()]]);
  for (const [name, leaf] of store) {
    expect(gradients.get(leaf)!.dtype).toBe("f32");
    values.set(name, await gradients.get(leaf)!.read());
  }
  for (const tensor of [loss, ...gradients.values()]) tensor.dispose();
  store.dispose();
  expectNoLeaks(device);
  return values;
}

/** Attention in which each of 5 queries sees all `S` keys, and its gradients: by one op, or by softmax. */
async function openAttention(device: Device, S: number, isFused: boolean) {
  const pick = new TestRandom(S);
  const [B, T, H, D] = [2, 5, 2, 8];
  const values = new Map<string, ArrayLike<number>>();
  const leaves = Object.entries({ q: T, k: S, v: S }).map(
    ([name, count]) =>
      [name, device.tensor(pick.normals(B * count * H * D), [B, count, H, D])] as [string, Tensor],
  );
  const [q, k, v] = leaves.map(([, tensor]) => tensor);
  using tape = new Tape(device, leaves);
  const swap = (x: Tensor) => tape.transpose(x, { permutation: [0, 2, 1, 3] });
  using y = device.scope(() => {
    if (isFused) return tape.attention(q, k, v, null, null, { queryOffset: S });
    const scores = tape.scale(tape.matmulNT(swap(q), swap(k)), { factor: D ** -0.5 });
    return swap(tape.matmul(tape.softmax(scores), swap(v)));
  });
  using dy = device.tensor(pick.normals(y.size), y.shape);
  const gradients = tape.backward(y, dy);
  values.set("y", await y.read());
  for (const [name, tensor] of leaves) values.set(name, await gradients.get(tensor)!.read());
  for (const tensor of [...gradients.keys(), ...gradients.values()]) tensor.dispose();
  return values;
}

/** Multiples of 1/64 below 32 are exact in f16. */
const roundToHalf = (x: number): number => Math.round(x * 64) / 64;

// `SIDENET_DEVICE=cpu` is the explicit way to do without an adapter; otherwise a missing one fails.
const gpuAvailable = process.env.SIDENET_DEVICE !== "cpu";
const ENGINES: [string, () => Promise<Device>][] = [
  ["WebAssembly", () => openNodeWasm({ poison: true })],
  ["WebAssembly, 1 thread", () => openNodeWasm({ poison: true, threads: 1 })],
  ["WebAssembly, 4 threads", () => openNodeWasm({ poison: true, threads: 4 })],
  ["WebAssembly, no fused multiply-add", () => openNodeWasm({ poison: true, relaxedSimd: false })],
  ...(gpuAvailable
    ? [["WebGPU", () => openNodeWebGpu({ poison: true })] as [string, () => Promise<Device>]]
    : []),
];

describe.each(ENGINES)("a step on %s agrees with the reference", (_, open) => {
  let device: Device;
  beforeEach(async () => {
    device = await open();
  });
  afterEach(() => device?.dispose());

  it("in loss, gradients, norm and updated parameters of a decoder", async () => {
    const want = await decoderStep(new CpuDevice({ precision: "f64" }));
    // The second time from pooled memory. Float32, two layers deep.
    for (let again = 0; again < 2; again++) {
      expectClose(await decoderStep(device), want, 2e-5);
      expectNoLeaks(device);
    }
  });

  it("in attention to every key, over as many keys as queries and over others, which is softmax attention", async () => {
    const reference = new CpuDevice({ precision: "f64" });
    for (const S of [5, 7, 3]) {
      const want = await openAttention(reference, S, false);
      expectClose(await openAttention(reference, S, true), want, 1e-12);
      expectClose(await openAttention(device, S, true), want, 1e-5);
    }
  });

  it("in a clipping bound of 0, which leaves nothing, and of infinity, which leaves all", async () => {
    const norms = [];
    for (const maxNorm of [0, Number.POSITIVE_INFINITY]) {
      for (const size of [0, 3]) {
        using parameter = device.zeros([1]);
        using gradient = device.tensor([size], [1]);
        const { factor, norm } = clipGlobalNorm(new Map([[parameter, gradient]]), maxNorm);
        norms.push([await factor.item(), await norm.item()]);
        factor.dispose();
        norm.dispose();
      }
    }
    expect(norms).toEqual([
      [0, 0],
      [0, 3],
      [1, 0],
      [1, 3],
    ]);
    expectNoLeaks(device);
  });

  it("where f16 and f32 meet", async (context) => {
    if (!device.profile.f16) return context.skip();
    expectClose(await mixedStep(device), await mixedStep(new CpuDevice({ precision: "f64" })), 4e-3);
  });
});

it("a step on WebAssembly is the same to the bit on 1, 2 and 4 threads", async () => {
  const steps: Map<string, ArrayLike<number>>[] = [];
  for (const threads of [1, 2, 4]) {
    const device = await openNodeWasm({ threads });
    steps.push(await decoderStep(device, 8));
    if (threads > 1) expect(device.statistics().shared).toBeGreaterThan(0);
    device.dispose();
  }
  for (const other of steps.slice(1)) {
    for (const [name, values] of steps[0])
      expect(Array.from(other.get(name)!), name).toEqual(Array.from(values));
  }
});
