import { availableParallelism } from "node:os";
import type { AdapterReport } from "@sidenet/tensor";
import { chooseDevice, openDevice, openNodeWasm } from "@sidenet/tensor/node";
import { afterEach, describe, expect, it } from "vitest";

const adapter = (software: boolean): AdapterReport => ({
  ...{ vendor: "v", architecture: "a", description: "llvmpipe", driver: "Mesa" },
  ...{ software, features: [], limits: {} },
});

describe("--device auto", () => {
  it("takes a hardware GPU, else WebAssembly, and says why", () => {
    expect(chooseDevice(adapter(false))).toEqual({ device: "webgpu", reason: "a hardware GPU" });
    const software = chooseDevice(adapter(true));
    expect(software.device).toBe("wasm");
    expect(software.reason).toContain("llvmpipe");
    expect(chooseDevice(null)).toEqual({ device: "wasm", reason: "no WebGPU adapter" });
  });

  it("without WebAssembly SIMD takes a software GPU, else the reference", () => {
    const noSimd = () => false;
    expect(chooseDevice(adapter(false), noSimd).device).toBe("webgpu");
    expect(chooseDevice(adapter(true), noSimd).device).toBe("webgpu");
    const last = chooseDevice(null, noSimd);
    expect(last.device).toBe("cpu");
    expect(last.reason).toContain("no WebAssembly SIMD");
  });
});

describe("SIDENET_THREADS", () => {
  const before = process.env.SIDENET_THREADS;
  afterEach(() => {
    if (before === undefined) delete process.env.SIDENET_THREADS;
    else process.env.SIDENET_THREADS = before;
  });

  it("is the number of threads, more than there are cores too; without it there are as many as cores", async () => {
    for (const [text, threads] of [
      ["1", 1] as const,
      ["5", 5] as const,
      ["", availableParallelism()] as const,
    ]) {
      process.env.SIDENET_THREADS = text;
      const { device, reason } = await openDevice("wasm");
      expect(reason).toBe("asked for");
      expect(device).toMatchObject({ kind: "wasm", threads });
      device.dispose();
    }
  });

  it("is refused by name when it is no number of threads", async () => {
    for (const text of ["0", "-2", "1.5", "two", "1e99x"]) {
      process.env.SIDENET_THREADS = text;
      await expect(openDevice("wasm")).rejects.toThrow(`[T-THREADS] SIDENET_THREADS is "${text}"`);
    }
  });

  it("refuses a number of threads in code that is none", async () => {
    for (const threads of [0, -1, 2.5, Number.NaN]) {
      await expect(openNodeWasm({ threads })).rejects.toThrow("T-THREADS");
    }
  });
});
