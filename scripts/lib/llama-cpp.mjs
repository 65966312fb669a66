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

/** -log p of every token but the first of a text, by the logits of llama.cpp. */
export async function llamaNats(model, ids) {
  // One thread: several spin at barriers, and starve each other on a busy machine with few cores.
  const context = await model.createContext({ contextSize: ids.length, batchSize: ids.length, threads: 1 });
  const items = ids.map((id, t) => {
    const logits = { filter: { tokens: [ids[t + 1]], includeTop: 1 } };
    return t + 1 === ids.length ? id : [id, { generateNext: { totalLogitWeight: true, logits } }];
  });
  const results = await context.getSequence().controlledEvaluate(items);
  await context.dispose();
  return ids.slice(1).map((id, t) => {
    const { logits, totalLogitWeight } = results[t].next; // the weight is Σ exp(logit - the largest)
    return Math.max(...logits.values()) + Math.log(totalLogitWeight) - logits.get(id);
  });
}
