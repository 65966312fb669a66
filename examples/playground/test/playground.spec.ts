// Tests the playground in headless Chromium: on WebGPU with the software driver, and on WebAssembly without WebGPU.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ADAPTER_FILES } from "@sidenet/ladder";
import { openAdapter, openModelConfig } from "@sidenet/ladder/node";
import { CpuDevice } from "@sidenet/tensor";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openChromium } from "../../../scripts/lib/chromium.mjs";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { openElsewhere, openSite, type Site, Visit } from "./site.ts";

/** A minimal run, since the software driver is about a thousand times slower than a GPU. */
const SMALL = { batch: 2, length: 32, tokens: 4, steps: 4, rate: 0.01 };
const TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun. ".repeat(12);

let site: Site;
beforeAll(async () => {
  site = await openSite();
});
afterAll(() => site?.close());

describe("with WebGPU on the software driver", () => {
  let browser: Browser;
  let visit: Visit;
  beforeAll(async () => {
    browser = await openChromium();
    visit = await Visit.open(browser, site);
    await visit.chooseDevice("webgpu");
  });
  afterAll(() => browser?.close());

  it.each(["ladder", "qlora"] as const)("trains %s, and shows loss, memory and texts", async (method) => {
    expect(await visit.text("device")).toMatch(/^WebGPU: ./);
    await visit.choose({ text: "own", fields: { "own-text": TEXT } });
    const { before, after } = await visit.run({ method, fields: SMALL });
    expect(before).toBeGreaterThan(1);
    expect(after).toBeLessThan(before - 0.01);
    expect(await visit.page.locator("#loss").getAttribute("data-points")).toBe(String(SMALL.steps));
    for (const category of ["weights", "adapter", "optimizer", "saved"])
      expect(await visit.peakBytes(category), category).toBeGreaterThan(0);
    expect((await visit.peakBytes("rungs")) > 0).toBe(method === "ladder");
    expect(await visit.text("tile-peak")).toMatch(/^[\d.]+ MiB$/);
    for (const when of ["before", "after"])
      expect((await visit.text(when)).length, when).toBeGreaterThan("Once upon a time".length);
  });

  it("keeps to itself: nothing was asked of another origin, and nothing can be", async () => {
    expect(visit.requests.length).toBeGreaterThan(5); // the worker's are among them
    for (const url of visit.requests)
      expect(url).toMatch(new RegExp(`^(${site.url}|blob:${site.url}|data:)`));
    const elsewhere = await openElsewhere();
    try {
      const asking = `fetch("${elsewhere.url}").then(() => "answered", () => "refused")`;
      expect(await visit.page.evaluate(asking)).toBe("refused");
      expect(await visit.inWorker(asking)).toBe("refused");
      expect(elsewhere.asked).toEqual([]);
    } finally {
      elsewhere.close();
    }
  });

  it("says that the device was lost in a run, opens it again, and goes on", async () => {
    await visit.inWorker(`{
      const { requestDevice } = GPUAdapter.prototype;
      GPUAdapter.prototype.requestDevice = async function (...given) {
        return (globalThis.lately = await requestDevice.apply(this, given));
      };
    }`);
    await visit.chooseDevice("auto");
    await visit.chooseDevice("webgpu");
    const fields = { "own-text": TEXT, batch: 1, length: 16, tokens: 1, steps: 1000 };
    await visit.start({ method: "ladder", text: "own", fields });
    await visit.page.locator("#status", { hasText: "of 1000" }).waitFor();
    await visit.inWorker("globalThis.lately.destroy()");
    await visit.page.locator("#problem", { hasText: "is gone" }).waitFor();
    await visit.idle();
    expect(await visit.text("device")).toMatch(/^WebGPU: ./);
    expect(await visit.page.locator("#train").isEnabled()).toBe(true);
  });

  it("goes on with WebAssembly, and says why, where the browser gives no device", async () => {
    await visit.inWorker(`GPUAdapter.prototype.requestDevice = async () => {
      throw new TypeError("not today");
    };`);
    await visit.chooseDevice("auto");
    await visit.chooseDevice("webgpu");
    expect(await visit.text("device")).toContain("WebAssembly");
    expect(await visit.text("notice")).toMatch(/gave no device: not today, so training runs on the CPU/);
    expect(visit.errors.filter((error) => !error.includes("Content Security Policy"))).toEqual([]);
  });
});

describe("without WebGPU", () => {
  let browser: Browser;
  let visit: Visit;
  beforeAll(async () => {
    browser = await openChromium({ webGpu: false });
    visit = await Visit.open(browser, site, { acceptDownloads: true });
  });
  afterAll(() => browser?.close());

  it("says so, and trains in a worker on WebAssembly, on several threads", async () => {
    expect(await visit.text("notice")).toMatch(
      /WebGPU.*so training runs on the CPU, in a worker: WebAssembly/,
    );
    expect(await visit.text("device")).toMatch(/WebAssembly SIMD.*(one thread|\d+ threads)/);
    const losses = [];
    for (const method of ["ladder", "qlora"] as const)
      losses.push(await visit.run({ method, text: "plays", fields: { steps: 20, tokens: 8, length: 64 } }));
    const [ladder, qlora] = losses;
    expect(ladder.before).toBe(qlora.before); // both begin as the model itself
    for (const { before, after } of losses) expect(after).toBeLessThan(before - 0.05);
    expect(await visit.page.locator("#runs tr").count()).toBe(2);
    expect(await visit.page.locator('#memory [data-what="peak"]').count()).toBe(2);
    expect(visit.errors).toEqual([]);
  });

  it("gives the adapter as files that the library takes", async () => {
    const folder = temporaryFolder();
    for (const name of Object.values(ADAPTER_FILES))
      await writeFile(join(folder, name), await visit.saved(name));
    const config = await openModelConfig("tiny-books");
    using adapter = await openAdapter(folder, new CpuDevice(), config);
    expect(adapter.method).toBe("lora"); // the last run's
    expect(adapter.parameters.count).toBeGreaterThan(10_000);
  });

  it("stops when it is asked to, and keeps what was trained by then", async () => {
    await visit.start({ method: "ladder", fields: { steps: 2000 } });
    await visit.page.locator("#status", { hasText: "of 2000" }).waitFor();
    await visit.page.locator("#stop").click();
    await visit.idle();
    expect(await visit.page.locator("#runs tr").first().innerText()).toMatch(/\d+, stopped/);
  });

  it("writes again from another prompt, with and without what was trained", async () => {
    await visit.page.locator("#prompt").fill("The cat");
    await visit.asks(() => visit.page.locator("#write").click());
    await visit.idle();
    for (const when of ["before", "after"]) expect(await visit.text(when)).toMatch(/^The cat./);
  });

  it("takes a file of one's own, and says what is wrong with those it does not take", async () => {
    const { page } = visit;
    const give = (name: string, text: string) =>
      page.locator("#own-file").setInputFiles({ name, mimeType: "text/plain", buffer: Buffer.from(text) });
    const problem = async () => {
      await page.locator("#problem:not([hidden])").waitFor();
      return visit.text("problem");
    };
    await visit.choose({ text: "own", fields: { steps: 1, length: 32, tokens: 1, "own-text": "" } });
    await page.locator("#train").click();
    expect(await problem()).toMatch(/no text yet/);
    await give("picture.png", "no text");
    expect(await problem()).toMatch(/picture\.png is not read here/);
    await give("short.txt", "Too short.");
    await visit.start();
    await visit.idle();
    expect(await problem()).toMatch(/The text has \d+ tokens, and a run needs at least 64/);
    await give("broken.jsonl", '{"text": "fine"}\n{"text": \n');
    await page.locator("#problem").waitFor({ state: "hidden" }); // it was the other file's
    await visit.start();
    await visit.idle();
    expect(await problem()).toMatch(/broken\.jsonl, line 2 is not JSON/);
    const lines = TEXT.match(/.{1,240}/g)!.map((text) => `${JSON.stringify({ text })}\n`);
    await give("mine.jsonl", lines.join(""));
    await visit.run({});
    expect(await page.locator("#runs tr").first().innerText()).toContain("mine.jsonl");
  });

  it("compiles no code from text, neither in the page nor in the worker, and does not try to", async () => {
    const reports = await openElsewhere();
    const policy = `script-src 'self' 'wasm-unsafe-eval'; worker-src blob:; report-uri ${reports.url}`;
    const strict = await openSite({ "Content-Security-Policy": policy });
    const visit = await Visit.open(browser, strict);
    try {
      const attempt = `void setTimeout(() => Function(""))`; // later, since the policy does not bind this script itself
      await visit.page.evaluate(attempt);
      await visit.inWorker(attempt);
      await expect.poll(() => reports.asked.length).toBeGreaterThan(1);
      expect(reports.asked.length).toBe(2); // of the two attempts here
    } finally {
      await visit.close();
      await strict.close();
      reports.close();
    }
  });

  it("takes the reference where there is no WebAssembly SIMD either", async () => {
    await visit.inWorker("WebAssembly.validate = () => false");
    await visit.chooseDevice("wasm");
    expect(await visit.text("notice")).toMatch(/no WebAssembly SIMD, so training runs on the CPU/);
    await visit.run({ fields: { steps: 1, length: 16, batch: 1, tokens: 1 } });
    expect(visit.errors).toEqual([]);
  });

  it("fits a phone in the dark, and is worked by keyboard", async () => {
    const phone = await Visit.open(browser, site, {
      viewport: { width: 320, height: 740 },
      colorScheme: "dark",
    });
    const { page } = phone;
    const width = () => page.evaluate("document.documentElement.scrollWidth");
    expect(await width()).toBe(320);
    expect(await page.evaluate("getComputedStyle(document.body).backgroundColor")).toBe("rgb(20, 22, 26)");
    await page.locator('input[name="text"][value="plays"]').focus();
    await page.keyboard.press("ArrowDown");
    expect(await page.locator("#prompt").inputValue()).toBe("Shall I compare thee");
    await phone.choose({ fields: { steps: 2, length: 32, tokens: 2 } });
    await phone.asks(() => page.locator("#steps").press("Enter"));
    await phone.idle();
    expect(await page.locator("#runs tr").count()).toBe(1);
    expect(await width()).toBe(320);
    await phone.close();
  });
});
