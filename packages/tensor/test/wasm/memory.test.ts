import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
  CpuDevice,
  compareOutcomes,
  drawCase,
  rowOf,
  runCase,
  type Tensor,
  TestRandom,
  WasmDevice,
} from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import { Runtime } from "../../src/wasm/runtime.ts";

const MIB = 2 ** 20;

// Memory that nobody touches is only a range of addresses: these tests take gigabytes of those, and little memory.

describe("WebAssembly memory", () => {
  it("grows with what is asked for, keeps what was there, and takes freed memory again", async () => {
    const device = await openNodeWasm({ threads: 2 });
    const first = device.tensor([1, 2, 3, 4], [4]);
    const before = device.statistics().memoryBytes;
    const large = device.zeros([40 * MIB]);
    expect(device.statistics().memoryBytes).toBeGreaterThanOrEqual(before + 160 * MIB);
    expect([...(await first.read())]).toEqual([1, 2, 3, 4]);
    const grown = device.statistics().memoryBytes;
    large.dispose();
    for (let round = 0; round < 20; round++) device.empty([40 * MIB]).dispose();
    expect(device.statistics().memoryBytes).toBe(grown);
    first.dispose();
    expect(device.statistics().freeBytes).toBe(grown);
    device.dispose();
  });

  it("is computed in past 2 GiB, where addresses have their highest bit", async () => {
    const device = await openNodeWasm({ threads: 2 });
    const below: Tensor[] = [1, 2, 3].map(() => device.empty([200 * MIB])); // 800 MiB each
    const reference = new CpuDevice({ precision: "f64" });
    const names = ["linear", "matmul", "attention", "attentionBackwardKV", "softmax", "lmHeadLoss"] as const;
    for (const name of [...names, "nf4Linear", "nf4LinearBackwardX", "adamw", "sum", "cast"] as const) {
      for (let seed = 1; seed <= 3; seed++) {
        const drawn = drawCase(rowOf(name), new TestRandom(seed));
        const expected = await runCase(reference, name, drawn);
        const got = await runCase(device, name, drawn);
        expect(compareOutcomes(name, drawn, got, expected)).toBe(null);
      }
    }
    expect(device.statistics().memoryBytes).toBeGreaterThan(2 ** 31);
    for (const tensor of below) tensor.dispose();
    device.dispose();
  });

  it("of the loss over a head is that of one chunk of tokens, however many there are", async () => {
    const device = await openNodeWasm({ threads: 1 });
    const [V, C, chunkTokens] = [2048, 16, 64];
    const peakOver = async (chunks: number) => {
      const n = chunks * chunkTokens;
      using h = device.zeros([n, C]);
      using w = device.zeros([V, C]);
      using targets = device.tensor(new Int32Array(n), [n], { dtype: "i32" });
      const before = device.memory.liveBytes;
      device.memory.resetPeak();
      using loss = device.ops.lmHeadLoss(h, w, targets, { chunkTokens });
      expect(await loss.item()).toBeCloseTo(Math.log(V), 3);
      return device.memory.peak().peakBytes - before;
    };
    const [one, many] = [await peakOver(1), await peakOver(16)];
    expect(one).toBeGreaterThan(4 * V * chunkTokens);
    expect(many - one).toBeLessThan(4 * 4 * 16 * chunkTokens); // some numbers a token
    device.dispose();
  });

  it("of attention is that of the batch rows that are packed at a time, however many there are", async () => {
    const device = await openNodeWasm({ threads: 1 });
    const [T, H, D] = [256, 4, 64];
    const bytesOfRow = 4 * T * H * D;
    const workspaceOf = (B: number) => {
      using q = device.zeros([B, T, H, D]);
      device.memory.resetPeak();
      const before = device.memory.liveBytes;
      using y = device.ops.attention(q, q, q);
      return device.memory.peak().peakBytes - before - 4 * y.size;
    };
    expect(workspaceOf(80)).toBeLessThan(1.2 * workspaceOf(30));
    expect(workspaceOf(30)).toBeGreaterThan(30 * bytesOfRow);
    device.dispose();
  });

  it("ends at 4 GiB with an error that names the request, what is live and what would help, and goes on", async () => {
    const device = await openNodeWasm({ threads: 1 });
    const held: Tensor[] = [];
    let message = "";
    try {
      for (let i = 0; i < 8; i++) {
        held.push(device.empty([200 * MIB], { category: "weights", label: `part ${i}` }));
      }
    } catch (error) {
      message = (error as Error).message;
    }
    expect(message).toMatch(/T-OUT-OF-MEMORY.*part \d asked for 800/);
    expect(message).toContain("4 GiB");
    expect(message).toContain("--device webgpu");
    expect(message).toMatch(/Live now: \d+\.\d MiB \(.*weights/);
    expect(held.length).toBeGreaterThan(3);
    const live = device.memory.liveBytes;
    held.pop()!.dispose();
    expect(device.memory.liveBytes).toBe(live - 800 * MIB);
    const again = device.tensor([5], [1]);
    expect([...(await again.read())]).toEqual([5]);
    for (const tensor of [...held, again]) tensor.dispose();
    device.dispose();
  });

  it("goes when the device is disposed, though the device and a tensor of it are still held", async () => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const open = async () => {
      const runtime = await Runtime.open({ relaxedSimd: false, threads: 1, mayWait: true, spawn: null });
      return { device: new WasmDevice(runtime), memory: new WeakRef(runtime.memory) };
    };
    const { device, memory } = await open();
    const x = device.tensor([1, 2], [2]);
    device.dispose();
    await new Promise((resolve) => setTimeout(resolve)); // a WeakRef holds its target until then
    collect();
    expect(memory.deref()).toBeUndefined();
    x.dispose();
    expect([device.memory.liveCount, device.threads]).toEqual([0, 1]);
    expect(() => device.statistics()).toThrow("T-DEVICE-LOST");
  });
});
