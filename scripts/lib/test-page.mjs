// Test pages: bundled from one source file and served from this machine, with or without the headers that isolate a page from
// others, which shared memory needs.

import { createServer } from "node:http";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { build, defaultClientConditions } from "vite";

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

const html = (script) => `<!doctype html><meta charset="utf-8"><title>sidenet</title>
<script type="module">${script}</script>`;

/**
 * Serves a page that runs `script`, a module that may import the module `entry` as "./page.js". `policy` is a content security
 * policy, which has to allow the page's own inline script. `posted` gets the text of each POST request.
 */
export async function servePage(entry, script, { isolated = false, policy = "", posted } = {}) {
  const files = {
    "/": { type: "text/html", text: html(script) },
    "/page.js": { type: "text/javascript", text: await bundle(entry) },
  };
  const headers = {
    ...(isolated ? ISOLATION : {}),
    ...(policy ? { "Content-Security-Policy": policy } : {}),
  };
  const server = createServer(async (request, response) => {
    if (request.method === "POST") posted?.((await request.setEncoding("utf8").toArray()).join(""));
    const file = files[request.url];
    response.writeHead(file ? 200 : 404, { "Content-Type": file?.type ?? "text/plain", ...headers });
    response.end(file?.text);
  });
  await new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve); // loopback counts as secure
  });
  const { port } = server.address();
  const close = () => {
    server.close();
    server.closeAllConnections();
  };
  return { url: `http://127.0.0.1:${port}/`, close };
}
