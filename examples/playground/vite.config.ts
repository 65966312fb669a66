import { defineConfig, type Plugin } from "vite";

/**
 * The content security policy: the page may fetch only from its own origin, so no data leaves it. The worker is a blob in the
 * page's script, so that the policy applies to it too, wherever the page is served from.
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

/** These headers isolate the page from others, which shared memory needs, and so WebAssembly with several threads. */
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
  // In development the worker is a separate file, which gets the policy from its headers.
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
