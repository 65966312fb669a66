import type { OpName } from "@sidenet/tensor";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openChromium, openPage } from "../../../../scripts/lib/chromium.mjs";
import { callInFirefox } from "../../../../scripts/lib/firefox.mjs";
import type { Cases } from "./ops.page.ts";

const PAGE = new URL("./ops.page.ts", import.meta.url);
let browser: Browser;

beforeAll(async () => {
  browser = await openChromium();
});
afterAll(() => browser?.close());

/** Runs a function of the page in one of its own. */
async function inPage<T>(
  name: string,
  options: { isolated?: boolean; policy?: string } = {},
  argument?: Cases,
): Promise<T> {
  const page = await openPage(browser, PAGE, options);
  try {
    return await page.call(name, argument);
  } finally {
    await page.close();
  }
}

interface WasmReport {
  readonly isolated: boolean;
  readonly cores: number;
  readonly threads: number;
  readonly differences: readonly string[];
}

interface Opened {
  readonly kind: string;
  readonly label: string;
  readonly reason: string;
}

describe("WebAssembly in a page", () => {
  it("agrees with the reference in every op on all cores where the page is isolated", async () => {
    const report = await inPage<WasmReport>("wasm", { isolated: true });
    expect(report.isolated).toBe(true);
    expect(report.threads).toBe(report.cores);
    expect(report.differences).toEqual([]);
  });

  it("agrees with the reference in every op on one thread where it is not", async () => {
    const report = await inPage<WasmReport>("wasm");
    expect(report.isolated).toBe(false);
    expect(report.threads).toBe(1);
    expect(report.differences).toEqual([]);
  });
});

describe("WebAssembly in a page with a content security policy", () => {
  it("runs on one thread, and says why, where the policy allows no workers from blobs", async () => {
    const policy = "worker-src 'self'";
    const opened = await inPage<Opened>("openedAsWasm", { isolated: true, policy });
    expect(opened.label).toMatch(/^WebAssembly SIMD.* one thread$/);
    expect(opened.reason).toMatch(/^WebAssembly has one thread: .*worker-src blob:/);
  });

  it("gives way to the reference, and says why, where the policy allows no WebAssembly", async () => {
    const opened = await inPage<Opened>("openedAsWasm", { policy: "script-src 'self' 'unsafe-inline'" });
    expect(opened.kind).toBe("cpu");
    expect(opened.reason).toMatch(/^WebAssembly does not run here: .*script-src 'wasm-unsafe-eval'\)$/);
    expect(opened.reason).not.toContain("--device");
  });
});

interface WebGpuReport {
  readonly label: string;
  readonly differences: readonly string[];
}

describe("WebGPU in a page", () => {
  it("finds an adapter, and agrees with the reference", async () => {
    const names: OpName[] = [
      "add",
      "matmul",
      "linear",
      "rmsNorm",
      "softmax",
      "attention",
      "crossEntropy",
      "sum",
    ];
    const report = await inPage<WebGpuReport>("webGpu", {}, { names, cases: 2 }); // throws T-NO-ADAPTER
    expect(report.label).not.toBe("");
    expect(report.differences).toEqual([]);
  });
});

// Its WebGPU compiles WGSL by another compiler than Chromium's and Node's.
describe("Firefox", () => {
  it.each([
    ["the kernels of a software driver", { adapterClass: "software" }, "f32"],
    ["the kernels of a GPU", { adapterClass: "discrete" }, "f32"],
    ["the kernels of a GPU in f16", { adapterClass: "discrete" }, "f16"],
  ] as const)("agrees with the reference in every op on WebGPU, with %s", async (_, options, elem) => {
    const report: WebGpuReport = await callInFirefox(PAGE, "webGpu", { options, elem, cases: 1 });
    expect(report.differences).toEqual([]);
  });

  it("agrees with the reference in every op on WebAssembly", async () => {
    const report: WasmReport = await callInFirefox(PAGE, "wasm");
    expect(report.differences).toEqual([]);
  });
});
