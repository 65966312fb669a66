// Test pages in a headless Chromium: bundled from one source file and served from this machine, with or without the headers
// that isolate a page from others, which shared memory needs.

import { createServer } from "node:http";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { build, defaultClientConditions } from "vite";
import { ensureChromium } from "./chromium.mjs";

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

/** Bundles the module `entry` (a file URL) into one script, with the workspace's packages from their sources. */
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

function serve(files, headers) {
  const server = createServer(({ url }, response) => {
    const file = files[url];
    response.writeHead(file ? 200 : 404, {
      "Content-Type": file?.type ?? "text/plain",
      ...headers,
    });
    response.end(file?.text);
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => resolve(server));
  });
}

/**
 * Opens a page that loads the module `entry`. `call(name, argument)` runs one of the module's exported functions in the page
 * and returns a copy of its result; `close()` closes the page. Both throw what the page throws. `policy` is a content security
 * policy, which has to allow the page's own inline script.
 */
export async function openPage(browser, entry, { isolated = false, policy = "" } = {}) {
  const server = await serve(
    {
      "/": { type: "text/html", text: HTML },
      "/page.js": { type: "text/javascript", text: await bundle(entry) },
    },
    { ...(isolated ? ISOLATION : {}), ...(policy ? { "Content-Security-Policy": policy } : {}) },
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
