import { defineConfig, type Plugin } from "vite";

/**
 * Nothing leaves the page: it may fetch from where it came from, and from nowhere else. The worker is part of the page's own
 * script (a blob), so that the policy holds for it too, wherever the page is served from.
 */
const POLICY = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'", // WebAssembly is compiled; no text is ever evaluated
  "worker-src 'self' blob:",
  "connect-src 'self'",
  "style-src 'self' 'unsafe-inline'",
  "img-src 'self' data:",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

/** Shared memory, and with it WebAssembly on more than one thread, wants a page that is isolated from others. */
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

const policy: Plugin = {
  name: "content-security-policy",
  transformIndexHtml: () => [
    {
      tag: "meta",
      attrs: { "http-equiv": "Content-Security-Policy", content: POLICY },
      injectTo: "head-prepend",
    },
  ],
};

export default defineConfig({
  base: "./", // the built page works in any folder of any server
  plugins: [policy],
  // While developing, the worker is a file of its own, which takes the policy from its headers.
  server: { headers: { ...ISOLATION, "Content-Security-Policy": POLICY } },
  preview: { headers: ISOLATION },
  build: {
    target: "es2022",
    assetsInlineLimit: 0, // data: addresses are not the page's own origin
    chunkSizeWarningLimit: 2048,
    modulePreload: false,
    rolldownOptions: { checks: { pluginTimings: false } }, // the worker is a build of its own, which takes its time
  },
});
