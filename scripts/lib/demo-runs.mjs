// What `npm run demo` trains: the bundled model within a minute, or a real one.

import { parseArgs } from "node:util";
import { SetupError } from "./steps.mjs";

/** Per model: the arguments of `sidenet train` apart from --model, and a line on what is to be seen. */
export const DEMOS = {
  "tiny-books": {
    what: "a model of 1.4 M parameters that has read children's books learns to write plays",
    // Enough steps for the continuation to change its form, in half a minute on two cores.
    args: [
      ...["--data", "examples/data/shakespeare-sample.jsonl", "--held-out", "16", "--max-length", "256"],
      ...["--method", "ladder", "--reduction", "2", "--output", "out/demo"],
      ...["--steps", "80", "--batch-size", "4", "--learning-rate", "0.02"],
    ],
  },
  smollm2: {
    what: "SmolLM2-135M-Instruct learns to solve school arithmetic step by step",
    // Small enough for a few minutes on two cores, and large enough to see the loss fall.
    args: [
      ...["--data", "examples/data/gsm8k-sample.jsonl", "--held-out", "8"],
      ...["--method", "ladder", "--output", "out/demo-smollm2"],
      ...["--steps", "20", "--batch-size", "2"],
    ],
  },
};

/** The demo that the arguments of `npm run demo -- ...` name, and what of them is for `sidenet train`. */
export function chooseDemo(argv) {
  const { tokens } = parseArgs({
    args: argv,
    strict: false,
    tokens: true,
    options: { model: { type: "string" } },
  });
  const named = tokens.filter(({ kind, name }) => kind === "option" && name === "model");
  const name = named.length === 0 ? "tiny-books" : (named.at(-1).value ?? "");
  if (!Object.hasOwn(DEMOS, name)) {
    throw new SetupError(`There is no demo "${name}".`, `There are ${Object.keys(DEMOS).join(" and ")}.`, [
      "npx sidenet train --help",
    ]);
  }
  const taken = new Set(
    named.flatMap(({ index, inlineValue }) => (inlineValue ? [index] : [index, index + 1])),
  );
  return { name, rest: argv.filter((_, i) => !taken.has(i)) };
}

/** `sidenet train ...` of a demo, in place of the last one's run. Later options count more, so `rest` may change any. */
export function demoArguments(name, model, rest = []) {
  const existing = rest.includes("--resume") ? [] : ["--overwrite"];
  return ["train", "--model", model, ...DEMOS[name].args, ...existing, ...rest];
}
