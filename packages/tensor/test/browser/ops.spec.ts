import type { Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openChromium, openPage } from "../../../../scripts/lib/browser.mjs";

const PAGE = new URL("./ops.page.ts", import.meta.url);
let browser: Browser;

beforeAll(async () => {
  browser = await openChromium();
});
afterAll(() => browser?.close());

/** Runs a function of the page in one of its own. */
async function inPage<T>(name: string, options: { isolated?: boolean; policy?: string } = {}): Promise<T> {
  const page = await openPage(browser, PAGE, options);
  try {
    return await page.call(name);
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

describe("WebGPU in a page", () => {
  it("finds an adapter, and agrees with the reference", async () => {
    const report = await inPage<{ label: string; differences: string[] }>("webGpu"); // throws T-NO-ADAPTER
    expect(report.label).not.toBe("");
    expect(report.differences).toEqual([]);
  });
});
