// llama.cpp, by the Node package node-llama-cpp and its prebuilt binary, installed in a cache folder outside the project.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { cacheFolder } from "./environment.mjs";
import { installPackages } from "./packages.mjs";

const VERSION = "3.22.1";

/** Installs the package if it is missing, and loads it. */
async function loadPackage() {
  const folder = join(cacheFolder(), `node-llama-cpp-${VERSION}`);
  const entry = join(folder, "node_modules/node-llama-cpp/dist/index.js");
  if (!existsSync(entry)) {
    const binary = `@node-llama-cpp/${process.platform === "darwin" ? "mac" : process.platform}-${process.arch}@${VERSION}`;
    installPackages(folder, [`node-llama-cpp@${VERSION}`, binary.replace("win32", "win")]);
  }
  return import(pathToFileURL(entry).href);
}

/** Calls `body` with a model that llama.cpp has loaded on the CPU. `options` are those of its `loadModel`. */
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

/** -log p in nats of every token of a text but the first, from llama.cpp's logits. */
export async function llamaNats(model, ids) {
  // One thread: several would spin at barriers and starve each other on a busy machine with few cores.
  const context = await model.createContext({ contextSize: ids.length, batchSize: ids.length, threads: 1 });
  const items = ids.map((id, t) => {
    const logits = { filter: { tokens: [ids[t + 1]], includeTop: 1 } };
    return t + 1 === ids.length ? id : [id, { generateNext: { totalLogitWeight: true, logits } }];
  });
  const results = await context.getSequence().controlledEvaluate(items);
  await context.dispose();
  return ids.slice(1).map((id, t) => {
    const { logits, totalLogitWeight } = results[t].next; // totalLogitWeight is Σ exp(logit - largest logit)
    return Math.max(...logits.values()) + Math.log(totalLogitWeight) - logits.get(id);
  });
}
