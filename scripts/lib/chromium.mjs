// Test pages in a headless Chromium.

import { chromium } from "playwright-core";
import { ensureChromium } from "./browsers.mjs";
import { servePage } from "./test-page.mjs";

/** Switch WebGPU on, which Chromium disables on Linux, with the software driver that Chromium contains (SwiftShader). */
const WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

/**
 * Starts Chromium, with WebGPU on its software driver, or without any adapter if `webGpu` is false. Throws `SetupError` if
 * there is no Chromium.
 */
export async function openChromium({ webGpu = true } = {}) {
  const executablePath = ensureChromium(false);
  // Chromium's own sandbox refuses to run as root, as in most containers.
  const sandbox = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
  return chromium.launch({ executablePath, args: [...sandbox, ...(webGpu ? WEBGPU : [])] });
}

const LOAD = `try {
  globalThis.page = await import("./page.js");
} catch (error) {
  globalThis.failure = String(error?.stack ?? error);
}
globalThis.loaded = true;`;

/**
 * Opens a page that loads the module `entry`. `call(name, argument)` runs one of the module's exported functions in the page
 * and returns a copy of its result; `close()` closes the page. Both throw what the page throws. `options` are those of
 * `servePage`.
 */
export async function openPage(browser, entry, options) {
  const served = await servePage(entry, LOAD, options);
  const page = await browser.newPage();
  const close = async () => {
    await page.close();
    served.close();
  };
  try {
    await page.goto(served.url);
    await page.waitForFunction(() => globalThis.loaded);
    const failure = await page.evaluate(() => globalThis.failure ?? null);
    if (failure !== null) throw new Error(`the page did not load: ${failure}`);
  } catch (error) {
    await close();
    throw error;
  }
  return {
    call: (name, argument) =>
      page.evaluate(([name, argument]) => globalThis.page[name](argument), [name, argument]),
    close,
  };
}
