// The training runs of `npm run demo`.

import { parseArgs } from "node:util";
import { SetupError } from "./steps.mjs";

/** By model: the arguments of `sidenet train` except --model, and a line on what the run shows. */
export const DEMOS = {
  "tiny-books": {
    what: "a model of 1.4 M parameters that has read children's books learns to write plays",
    // Enough steps that the generated text becomes a play; half a minute on two cores.
    args: [
      ...["--data", "examples/data/shakespeare-sample.jsonl", "--held-out", "16", "--max-length", "256"],
      ...["--method", "ladder", "--reduction", "2", "--output", "out/demo"],
      ...["--steps", "80", "--batch-size", "4", "--learning-rate", "0.02"],
    ],
  },
  smollm2: {
    what: "SmolLM2-135M-Instruct learns to solve school arithmetic step by step",
    // A few minutes on two cores, and enough steps that the loss falls.
    args: [
      ...["--data", "examples/data/gsm8k-sample.jsonl", "--held-out", "8"],
      ...["--method", "ladder", "--output", "out/demo-smollm2"],
      ...["--steps", "20", "--batch-size", "2"],
    ],
  },
};

/** Whether the arguments ask for help with the demo. */
export const asksForHelp = (argv) => argv.includes("--help") || argv.includes("-h");

/** What each demo is, and its options; `head` says how to start one. */
export function demoHelp(head) {
  const usage = `usage: npm run demo -- [--model ${Object.keys(DEMOS).join("|")}] [OPTIONS]`;
  const demos = Object.entries(DEMOS).map(
    ([name, { what, args }]) => `${name}: ${what}\n  ${args.join(" ")}`,
  );
  const options = "Options that are given come last and count more. npx sidenet train --help lists them.";
  return [usage, head, ...demos, options].join("\n\n");
}

/** The demo that the arguments of `npm run demo -- ...` choose by --model, and the arguments that are left for `sidenet train`. */
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

/** Arguments of sidenet for a demo, whose output overwrites an earlier run's. `rest` comes last, so it overrides the others. */
export function demoArguments(name, model, rest = []) {
  const existing = rest.includes("--resume") ? [] : ["--overwrite"];
  return ["train", "--model", model, ...DEMOS[name].args, ...existing, ...rest];
}
