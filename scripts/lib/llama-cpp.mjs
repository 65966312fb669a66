// llama.cpp's Node package (node-llama-cpp, with the binary its package ships), in a cache folder, not in the project.

import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { cacheFolder } from "./environment.mjs";
import { npm } from "./packages.mjs";

const VERSION = "3.22.1";

/** Installs it beside the project's models where it is not yet, and loads it. */
async function loadPackage() {
  const folder = join(cacheFolder(), `node-llama-cpp-${VERSION}`);
  const entry = join(folder, "node_modules/node-llama-cpp/dist/index.js");
  if (!existsSync(entry)) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "package.json"), '{ "private": true }\n');
    const binary = `@node-llama-cpp/${process.platform === "darwin" ? "mac" : process.platform}-${process.arch}@${VERSION}`;
    const packages = [`node-llama-cpp@${VERSION}`, binary.replace("win32", "win")];
    const { failed, output } = npm(folder, ["install", "--omit=optional", "--ignore-scripts", ...packages]);
    if (failed) throw new Error(`npm could not install ${packages.join(" and ")}: ${failed}\n${output}`);
  }
  return import(pathToFileURL(entry).href);
}

/** Runs `body` with a model of llama.cpp on the processor. `options` are those of its `loadModel`. */
export async function withLlamaModel(modelPath, options, body) {
  const { getLlama, LlamaLogLevel } = await loadPackage();
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    logLevel: LlamaLogLevel.error,
  });
  const model = await llama.loadModel({ modelPath, gpuLayers: 0, ...options });
  try {
    return await body(model);
  } finally {
    await model.dispose();
    await llama.dispose();
  }
}
