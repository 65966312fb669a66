// Measures what fine-tuning gains on a task: trains with each method, scores the frozen model and each adapter on other
// records, and prints the table of docs/results.md.
//
//   npm run build && node bench/task-results.mjs --model MODEL --task choice --train FILE --dev FILE --output DIR
//     [--methods ladder,xladder,qlora] [--steps 100] [--batch-size 8] [--limit 200] [--device auto] [--args="..."]
//
// --task is one that scores right answers. --args are more arguments of `sidenet train`.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { QUESTION_TASKS } from "@sidenet/ladder";
import { scriptOptions, usageError } from "../scripts/lib/options.mjs";
import { sidenet } from "../scripts/lib/sidenet.mjs";
import { requireSuccess } from "../scripts/lib/steps.mjs";

const values = scriptOptions(
  {
    model: null,
    task: "choice",
    train: null,
    dev: null,
    output: null,
    methods: ["ladder", "xladder", "qlora"],
    steps: 100,
    "batch-size": 8,
    limit: 200,
    device: "auto",
    args: "",
  },
  { required: ["model", "train", "dev", "output"], positive: ["steps", "batch-size", "limit"] },
);
if (!QUESTION_TASKS.includes(values.task))
  usageError(
    `--task ${values.task}: the table is of shares of right answers, so it takes ${QUESTION_TASKS.join(", ")}`,
  );

/** Runs sidenet, shows its progress, and returns the object that it prints. */
function runSidenet(...given) {
  const args = given.map(String);
  console.error(`$ npx sidenet ${args.join(" ")}`);
  const done = sidenet(args, { stdio: ["ignore", "pipe", "inherit"] });
  return requireSuccess(done, `sidenet ${args[0]} failed.`).result;
}

const percent = (value) => (100 * value).toFixed(1);
const share = ({ value, low, high }) => `${percent(value)} [${percent(low)}, ${percent(high)}]`;

const { model, task, train, dev, output, device } = values;
mkdirSync(output, { recursive: true });
const rows = [];
for (const method of values.methods) {
  const folder = join(output, method);
  const trained = runSidenet(
    ...["train", "--model", model, "--device", device, "--data", train, "--task", task, "--method", method],
    ...["--steps", values.steps, "--batch-size", values["batch-size"], "--output", folder, "--overwrite"],
    ...["--sample-tokens", "0", ...values.args.split(" ").filter(Boolean)],
  );
  const scored = runSidenet(
    ...["eval", "--model", model, "--device", device, "--data", dev, "--task", task, "--adapter", folder],
    ...["--limit", values.limit, "--quantize", "nf4"],
  );
  writeFileSync(join(output, `${method}.json`), `${JSON.stringify({ trained, scored }, null, 2)}\n`);
  const main = Object.keys(scored.before)[0];
  rows.push([
    method,
    ...[scored.before, scored.after, scored.difference].map((estimates) => share(estimates[main])),
    `${trained.frozen_eval_loss.toFixed(3)} → ${trained.eval_loss.toFixed(3)}`,
    trained.tokens,
    (trained.peak_bytes / 2 ** 20).toFixed(0),
    trained.seconds.toFixed(0),
  ]);
  console.error(`${rows.at(-1).join(" | ")}`);
}
const head = [
  "method",
  "before, %",
  "after, %",
  "difference, points",
  "held-out loss",
  "tokens",
  "peak MiB",
  "seconds",
];
for (const row of [head, head.map(() => "---"), ...rows]) console.log(`| ${row.join(" | ")} |`);
