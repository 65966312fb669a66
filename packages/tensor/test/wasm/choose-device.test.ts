import { availableParallelism } from "node:os";
import {
  type AdapterReport,
  type BrowserDeviceName,
  describeAdapter,
  openBrowserDevice,
} from "@sidenet/tensor";
import { chooseDevice, openDevice, openNodeWasm, releaseDawn } from "@sidenet/tensor/node";
import { afterEach, describe, expect, it } from "vitest";

const adapter = (software: boolean): AdapterReport => ({
  vendor: "v",
  architecture: "a",
  description: "llvmpipe",
  driver: "Mesa",
  software,
  features: [],
  limits: {},
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

describe("a device in a page", () => {
  /** A `navigator.gpu` whose adapter is of this name, and gives no device. */
  const refusing = (description: string): GPU =>
    ({
      wgslLanguageFeatures: new Set(),
      requestAdapter: async () => ({
        info: { vendor: "v", architecture: "", device: "", description },
        limits: {},
        features: new Set(),
        requestDevice: async () => {
          throw new TypeError("not today");
        },
      }),
    }) as unknown as GPU;
  const none = { requestAdapter: async () => null } as unknown as GPU;
  const { WebAssembly: engine } = globalThis as unknown as { WebAssembly: { validate: () => boolean } };
  const { validate } = engine;
  afterEach(() => {
    engine.validate = validate;
  });

  async function opened(name: BrowserDeviceName, gpu?: GPU) {
    const { device, reason } = await openBrowserDevice(name, {}, gpu);
    device.dispose();
    return [device.kind, reason];
  }

  it("is WebAssembly where there is no WebGPU, no adapter, a software one, or one that gives no device", async () => {
    expect(await opened("auto")).toEqual(["wasm", "this browser has no WebGPU"]);
    expect(await opened("webgpu")).toEqual(["wasm", "this browser has no WebGPU"]);
    expect(await opened("auto", none)).toEqual(["wasm", "this browser's WebGPU finds no graphics card"]);
    const [software, why] = await opened("auto", refusing("SwiftShader"));
    expect(software).toBe("wasm");
    expect(why).toContain("only a software adapter (SwiftShader)");
    for (const name of ["auto", "webgpu"] as const)
      expect(await opened(name, refusing("Card"))).toEqual(["wasm", "Card gave no device: not today"]);
  });

  it("is named by what a browser tells of its adapter, but not by PCI numbers", async () => {
    const info = { vendor: "", architecture: "", device: "", description: "" };
    const name = (told: object) =>
      describeAdapter({
        info: { ...info, ...told },
        limits: {},
        features: new Set(),
      } as unknown as GPUAdapter).description;
    expect(name({ vendor: "nvidia", architecture: "ampere" })).toBe("nvidia ampere"); // Chrome
    expect(name({ vendor: "65541", device: "0", description: "llvmpipe" })).toBe("llvmpipe"); // Deno
    expect(name({ vendor: "nvidia", device: "0x2684" })).toBe("nvidia");
    expect(name({})).toBe("unnamed GPU"); // Firefox
  });

  it("is opened with the options of a GPU", async () => {
    const asked: unknown[] = [];
    const gpu = { requestAdapter: async (options: object) => void asked.push(options) } as unknown as GPU;
    const { device } = await openBrowserDevice("auto", { powerPreference: "low-power" }, gpu);
    device.dispose();
    expect(asked).toEqual([{ powerPreference: "low-power" }]);
  });

  it("is the reference where there is no SIMD either, or where it is asked for", async () => {
    engine.validate = () => false;
    const [kind, reason] = await opened("auto");
    expect(kind).toBe("cpu");
    expect(reason).toBe("this browser has no WebGPU, and this browser has no WebAssembly SIMD");
    expect(await opened("wasm")).toEqual(["cpu", "this browser has no WebAssembly SIMD"]);
    expect(await opened("cpu")).toEqual(["cpu", "asked for"]);
    await expect(openBrowserDevice("meta" as "cpu")).rejects.toThrow(
      '[T-NAME] there is no device "meta" in a browser, only auto, webgpu, wasm, cpu.',
    );
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

describe("SIDENET_DAWN_FEATURES", () => {
  afterEach(() => {
    delete process.env.SIDENET_DAWN_FEATURES;
    releaseDawn();
  });

  it("is refused where it holds no names of toggles, before Dawn sees it", async () => {
    releaseDawn(); // it is read when Dawn loads
    for (const text of ["a b", "dump_shaders;", "enable=x"]) {
      process.env.SIDENET_DAWN_FEATURES = text;
      await expect(openDevice("webgpu")).rejects.toThrow(
        `[T-DAWN-FEATURES] SIDENET_DAWN_FEATURES is "${text}"`,
      );
    }
  });
});
