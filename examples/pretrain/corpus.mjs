// A run of token ids as data to train on and to evaluate on.

import { readFile } from "node:fs/promises";

/** A file of `tokenize.mjs`, and the bytes of text that its tokens stand for. */
export async function readTokens(path) {
  const bytes = new Uint8Array(await readFile(path));
  const counts = JSON.parse(await readFile(path.replace(/\.u16$/, ".json"), "utf8"));
  const tokens = new Uint16Array(bytes.buffer, 0, Math.floor(bytes.length / 2));
  if (tokens.length !== counts.tokens) {
    throw new Error(
      `${path}: ${tokens.length} tokens, and its .json says ${counts.tokens}. Run tokenize.mjs again.`,
    );
  }
  return { tokens, bytes: counts.bytes };
}

/**
 * The windows of `length` tokens that start at every multiple of `stride`, as a data set of the library. A stride smaller
 * than the length shows a token in several places of a window.
 */
export function windowsOf(tokens, length, stride = length) {
  return {
    length: Math.max(0, Math.floor((tokens.length - length) / stride) + 1),
    async get(index) {
      const inputIds = Array.from(tokens.subarray(index * stride, index * stride + length));
      return { inputIds, labels: inputIds, source: `window ${index}` };
    },
  };
}

/** Up to `count` windows side by side. */
export function firstWindows(tokens, length, count) {
  const windows = windowsOf(tokens, length);
  return Promise.all(Array.from({ length: Math.min(count, windows.length) }, (_, i) => windows.get(i)));
}
