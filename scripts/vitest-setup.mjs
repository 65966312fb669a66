// Runs once before the tests (vitest's globalSetup): embeds the kernels as they are now.

import { embedKernels } from "../kernels/embed.mjs";

export function setup() {
  embedKernels();
}
