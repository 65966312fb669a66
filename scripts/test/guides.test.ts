// The guides' commands and snippets run as they stand: with the bundled model, the guides' data, and fewer steps.
import { copyFile, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import * as autograd from "@sidenet/autograd";
import * as ladder from "@sidenet/ladder";
import * as ladderNode from "@sidenet/ladder/node";
import * as tensor from "@sidenet/tensor";
import * as tensorNode from "@sidenet/tensor/node";
import ts from "typescript";
import { beforeAll, describe, expect, it } from "vitest";
import { sidenet } from "../../packages/ladder/test/capture.ts";
import { temporaryFolder } from "../test-folder.ts";

const ROOT = resolve(fileURLToPath(import.meta.url), "../../..");
const DOCS = join(ROOT, "docs");
const DATA = join(ROOT, "examples/data");
const gpu = process.env.SIDENET_DEVICE !== "cpu";

const read = (name: string) => readFile(join(DOCS, name), "utf8");
const blocks = (text: string, language: string) =>
  [...text.matchAll(new RegExp(`\`\`\`${language}\\n([\\s\\S]*?)\`\`\``, "g"))].map(([, body]) => body);

const folder = temporaryFolder();
beforeAll(async () => {
  await copyFile(join(DATA, "animals.jsonl"), join(folder, "train.jsonl"));
  await copyFile(join(DATA, "animals-dev.jsonl"), join(folder, "dev.jsonl"));
  const [kernel] = blocks(await read("guide-benchmark-kernels.md"), "wgsl");
  await writeFile(join(folder, "saxpy.wgsl"), kernel);
  const [prefix] = blocks(await read("guide-fine-tune.md"), "text");
  await writeFile(join(folder, "prefix.txt"), prefix);
});

/** What is added to a command, so that it is short. */
const ADDED: Readonly<Record<string, readonly string[]>> = {
  train: [
    "--steps",
    "4",
    "--max-length",
    "32",
    "--sample-tokens",
    "4",
    "--held-out",
    "4",
    "--eval-every",
    "2",
  ],
  compare: ["--steps", "1", "--max-length", "32", "--held-out", "4", "--device", "wasm"],
  generate: ["--device", "wasm"],
  eval: ["--device", "wasm", "--limit", "3"],
  bench: ["--time", "2"],
};

/** Ten times the times of a report: nothing is slower than these, however busy the machine is meanwhile. */
async function slowDown(report: string): Promise<void> {
  const slower = (key: string, value: unknown) => (key === "minMs" ? 10 * Number(value) : value);
  await writeFile(report, JSON.stringify(JSON.parse(await readFile(report, "utf8"), slower)));
}

/** Files of the guide are in the test's folder, and its model is the bundled one. */
function argumentsOf(line: string): string[] {
  const words = [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain).slice(2);
  const placed = words.map((word) => {
    if (word === "MODEL") return "tiny-books";
    return /^(out\/[\w-]+(\.gguf)?|[\w-]+\.(jsonl|json|yaml|wgsl|txt))$/.test(word)
      ? join(folder, word)
      : word;
  });
  const [command] = placed;
  const added = ADDED[command] ?? [];
  if (command === "train")
    return [...placed, ...(placed.includes("--resume") ? ["--steps", "6"] : added), "--device", "wasm"];
  // The search for a context takes seconds a method: one will do.
  if (placed.includes("--memory")) return placed.filter((word) => !/^(xladder|qlora|qlora\+.*)$/.test(word));
  if (command === "bench" && !placed.includes("--kernel")) return [...placed, ...added, "--device", "wasm"];
  return [...placed, ...added];
}

const GUIDES = [
  "guide-fine-tune.md",
  "guide-choose-a-method.md",
  "guide-benchmark-kernels.md",
  "guide-drivers.md",
  "quantization.md",
  "peft.md",
];

describe.each(GUIDES)("%s", (guide) => {
  it("has commands that run one after the other", async () => {
    const lines = blocks(await read(guide), "sh")
      .flatMap((block) => block.trimEnd().split("\n"))
      .filter((line) => !line.startsWith("npm run build && node scripts/"));
    expect(lines.length).toBeGreaterThan(0);
    await rm(join(folder, "out"), { recursive: true, force: true }); // of the guide before
    for (const line of lines) {
      expect(line).toMatch(/^npx sidenet \w+/);
      if (!gpu && /--kernel|doctor/.test(line)) continue;
      if (line.includes("--compare base.json")) await slowDown(join(folder, "base.json"));
      const { exitCode, err } = await sidenet(...argumentsOf(line.replace(/\s+#.*$/, "")));
      expect(exitCode, `${line}\n${err}`).toBe(0);
    }
    if (guide === "guide-fine-tune.md") {
      for (const path of [
        "run/report.html",
        "second/summary.json",
        "shown/summary.json",
        "adapter/adapter_config.json",
      ])
        expect((await stat(join(folder, "out", path))).size, path).toBeGreaterThan(0);
    }
  });
});

const packages: Record<string, object> = {
  "@sidenet/autograd": autograd,
  "@sidenet/ladder": ladder,
  "@sidenet/ladder/node": ladderNode,
  "@sidenet/tensor": tensor,
  "@sidenet/tensor/node": tensorNode,
};

/** What a snippet prints. */
async function printed(source: string): Promise<unknown[][]> {
  const body = source
    .replaceAll(/import (\{.*?\}) from "(.*?)";/g, 'const $1 = packages["$2"];')
    .replaceAll(/\btype \w+, |, type \w+/g, "");
  const { outputText } = ts.transpileModule(`async function example() {${body}}`, {
    compilerOptions: { target: ts.ScriptTarget.ES2022 },
  });
  const lines: unknown[][] = [];
  const output = { log: (...values: unknown[]) => lines.push(values) };
  await new Function("packages", "console", `${outputText}\nreturn example();`)(packages, output);
  return lines;
}

it("guide-autograd-research.md: its functions have right gradients, and its tapes keep what it says", async () => {
  const [composed, custom, op, scaled, glu, side, reader, method, masks, loss] = blocks(
    await read("guide-autograd-research.md"),
    "ts",
  );
  const [first, ...rest] = await printed(composed);
  expect(first[1]).toBeLessThan(1e-7);
  expect(rest.at(-1)).toEqual(["gradients:", 3]);
  expect(rest.slice(0, -2).filter(([op]) => op === "linear")).toHaveLength(3);
  const [[, worst], kept] = await printed(custom);
  expect(worst).toBeLessThan(1e-7);
  expect(kept).toEqual([["custom squaredRelu"], 48, "bytes"]);
  const [[, wrong], [, error], record] = await printed(op);
  expect(wrong).toBeNull();
  expect(error).toBeLessThan(1e-7);
  expect(record).toEqual([["softsign"], 48, "bytes"]);
  expect(await printed(scaled)).toEqual([
    ["wrong on this device:", null],
    ["y:", [-1, 2]],
  ]);
  const [[, wrongGlu], [, gluError]] = await printed(glu);
  expect(wrongGlu).toBeNull();
  expect(gluError).toBeLessThan(1e-6);
  const [[, start], [, end]] = (await printed(method)) as [string, number][];
  expect(end).toBeLessThan(start - 0.3);
  const [[, frozen], [, before], [, after]] = (await printed(side)) as [string, number][];
  expect(before).toBe(frozen);
  expect(await printed(masks)).toEqual([
    ["H_0:", [90, 100, 3, 4, 70, 80]],
    ["mask:", [1, 1, 0, 1]],
  ]);
  const losses = (await printed(loss)).map(([, value]) => value as number);
  expect(losses[0]).toBeCloseTo(Math.LN2, 6);
  expect(losses.at(-1)).toBeLessThan(0.5);
  expect(after).toBeLessThan(before);
  const [[, untrained], [, trained], plan] = (await printed(reader)) as [string, number][];
  expect(trained).toBeLessThan(untrained - 0.3);
  expect(plan[1]).toBeGreaterThan(1e6);
});

it("guide-data.md: its program reads what its table says", async () => {
  const questions = join(folder, "questions.jsonl");
  const record = (i: number) =>
    JSON.stringify({ question: `Who met mouse ${i}?`, answer: ` Mouse ${i + 1}.` });
  await writeFile(questions, Array.from({ length: 24 }, (_, i) => record(i)).join("\n"));
  const [source] = blocks(await read("guide-data.md"), "ts");
  const lines = await printed(source.replace('"train.jsonl"', JSON.stringify(questions)));
  expect(lines).toEqual([
    [expect.stringMatching(/^\d rows of 128 tokens, the first from questions\.jsonl, line \d+; /)],
  ]);
});

/** The text of a document without its code blocks. */
const proseOf = async (path: string) => (await readFile(path, "utf8")).replaceAll(/```[\s\S]*?```/g, "");

/** The anchors that GitHub gives the headings of a document. */
async function anchorsOf(path: string): Promise<Set<string>> {
  const headings = [...(await proseOf(path)).matchAll(/^#+ (.*)$/gm)].map(([, heading]) => heading);
  return new Set(
    headings.map((heading) =>
      heading
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N}\-_ ]/gu, "")
        .replaceAll(" ", "-"),
    ),
  );
}

it("every link from one document to another leads to a file, and to a heading of it where it names one", async () => {
  const documents = (await readdir(DOCS))
    .filter((name) => name.endsWith(".md"))
    .map((name) => join(DOCS, name));
  const readmes = ["", "kernels", "packages/autograd", "packages/ladder", "packages/tensor"].map((folder) =>
    join(ROOT, folder, "README.md"),
  );
  const missing: string[] = [];
  for (const path of [...documents, ...readmes]) {
    for (const [, target] of (await proseOf(path)).matchAll(/\]\((?!https?:)([^)\s]+)\)/g)) {
      const [file, anchor] = target.split("#");
      const linked = file === "" ? path : resolve(dirname(path), file);
      const found = await stat(linked).catch(() => null);
      if (found === null || (anchor && !(await anchorsOf(linked)).has(anchor)))
        missing.push(`${path}: ${target}`);
    }
  }
  expect(missing).toEqual([]);
  const index = await readFile(join(DOCS, "README.md"), "utf8");
  for (const path of documents)
    if (!path.endsWith("README.md")) expect(index).toContain(path.slice(DOCS.length + 1));
});
