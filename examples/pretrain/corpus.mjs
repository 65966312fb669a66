// Token ids of a corpus as training and evaluation data.

import { readFile } from "node:fs/promises";
import { SetupError } from "../../scripts/lib/steps.mjs";

/** Reads the tokens that `tokenize.mjs` wrote, and the size of their text in bytes. Throws if the files do not match. */
export async function readTokens(path) {
  const bytes = new Uint8Array(await readFile(path));
  const counts = JSON.parse(await readFile(path.replace(/\.u16$/, ".json"), "utf8"));
  const tokens = new Uint16Array(bytes.buffer, 0, Math.floor(bytes.length / 2));
  if (tokens.length !== counts.tokens) {
    throw new SetupError(
      `${path} has ${tokens.length} tokens, but its .json file says ${counts.tokens}.`,
      "Run tokenize.mjs again.",
    );
  }
  return { tokens, bytes: counts.bytes };
}

/** The windows of `length` tokens that start at each multiple of `stride`, as data for `BatchStream`. */
export function windowsOf(tokens, length, stride = length) {
  return {
    length: Math.max(0, Math.floor((tokens.length - length) / stride) + 1),
    async get(index) {
      const inputIds = Array.from(tokens.subarray(index * stride, index * stride + length));
      return { inputIds, labels: inputIds, source: `window ${index}` };
    },
  };
}

/** The first `count` windows, which do not overlap. */
export function firstWindows(tokens, length, count) {
  const windows = windowsOf(tokens, length);
  return Promise.all(Array.from({ length: Math.min(count, windows.length) }, (_, i) => windows.get(i)));
}
