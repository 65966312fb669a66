// Pages in a headless Chromium: bundled from one source file, served from this machine, with or without the headers that
// isolate a page from others, which shared memory needs.

import { createServer } from "node:http";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { build, defaultClientConditions } from "vite";
import { findChromium } from "./chromium.mjs";
import { SetupError } from "./steps.mjs";

/**
 * WebGPU in Chromium is off on Linux, and takes no software adapter by itself: these switch it on, with the driver that
 * Chromium brings (SwiftShader).
 */
const WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

/**
 * Starts Chromium, with WebGPU on its software driver unless `webGpu` is false: then no adapter is found, as on Linux without
 * these switches. Throws `SetupError` where there is no Chromium: `node scripts/setup.mjs --browser` installs it.
 */
export async function openChromium({ webGpu = true } = {}) {
  const executablePath = findChromium();
  if (executablePath === null) {
    throw new SetupError("There is no Chromium for the browser tests.", "", [
      "node scripts/setup.mjs --browser",
    ]);
  }
  // Chromium's own sandbox refuses to run as root, as in most containers.
  const sandbox = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
  return chromium.launch({ executablePath, args: [...sandbox, ...(webGpu ? WEBGPU : [])] });
}

/** One script from `entry` (a file URL), with packages read from their sources. */
async function bundle(entry) {
  const path = fileURLToPath(entry);
  const output = await build({
    configFile: false,
    logLevel: "warn",
    resolve: { conditions: ["source", ...defaultClientConditions] },
    build: {
      write: false,
      minify: false,
      target: "esnext",
      lib: { entry: path, formats: ["es"], fileName: basename(path, ".ts") },
    },
  });
  return output[0].output[0].code;
}

const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

const HTML = `<!doctype html><meta charset="utf-8"><title>sidenet</title>
<script type="module">
  try {
    globalThis.page = await import("./page.js");
  } catch (error) {
    globalThis.failure = String(error?.stack ?? error);
  }
  globalThis.loaded = true;
</script>`;

function serve(files, isolated) {
  const server = createServer(({ url }, response) => {
    const file = files[url];
    response.writeHead(file ? 200 : 404, {
      "Content-Type": file?.type ?? "text/plain",
      ...(isolated ? ISOLATION : {}),
    });
    response.end(file?.text);
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => resolve(server));
  });
}

/**
 * A page that has loaded the module `entry`. `call(name, argument)` runs one of its exported functions there, and gives
 * what that returns (or resolves to), copied. Throws what the page throws. Close it in the end.
 */
export async function openPage(browser, entry, { isolated = false } = {}) {
  const server = await serve(
    {
      "/": { type: "text/html", text: HTML },
      "/page.js": { type: "text/javascript", text: await bundle(entry) },
    },
    isolated,
  );
  const page = await browser.newPage();
  const close = async () => {
    await page.close();
    server.close();
  };
  try {
    await page.goto(`http://127.0.0.1:${server.address().port}/`); // loopback counts as secure
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
