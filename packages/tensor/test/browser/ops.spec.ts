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
async function inPage<T>(name: string, options: { isolated?: boolean } = {}): Promise<T> {
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

describe("WebGPU in a page", () => {
  it("finds an adapter, and agrees with the reference", async () => {
    const report = await inPage<{ label: string; differences: string[] }>("webGpu"); // throws T-NO-ADAPTER
    expect(report.label).not.toBe("");
    expect(report.differences).toEqual([]);
  });
});
