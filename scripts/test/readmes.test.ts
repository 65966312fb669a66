// What the READMEs show is run: the commands of the project's, with the bundled model, and the packages' snippets.
// (autograd's has a test of its own, which knows what its numbers should be.)
import { mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import * as ladder from "@sidenet/ladder";
import * as ladderNode from "@sidenet/ladder/node";
import * as tensor from "@sidenet/tensor";
import * as tensorNode from "@sidenet/tensor/node";
import ts from "typescript";
import { beforeAll, describe, expect, it } from "vitest";
import { sidenet, sidenetWith } from "../../packages/ladder/test/capture.ts";
import { matmulCase, writeFolder } from "../../packages/ladder/test/golden-cases.ts";
import { temporaryFolder } from "../test-folder.ts";

const ROOT = resolve(fileURLToPath(import.meta.url), "../../..");
const DATA = join(ROOT, "examples", "data", "shakespeare-sample.jsonl");
const BOOLQ = [
  { context: "The sky is blue.", question: "is the sky blue?", choices: ["no", "yes"], label: 1 },
  { context: "Snow is white.", question: "is snow black?", choices: ["no", "yes"], label: 0 },
];
const CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}";

const readText = (path: string) => readFile(join(ROOT, path), "utf8");

const folder = temporaryFolder();
beforeAll(async () => {
  await writeFile(join(folder, "dev.jsonl"), BOOLQ.map((row) => `${JSON.stringify(row)}\n`).join(""));
  await writeFile(join(folder, "chat.jinja"), CHAT_TEMPLATE);
  await writeFolder(join(folder, "golden", "matmul"), matmulCase());
});

describe("the README's commands", () => {
  /** Without their comments. */
  const lines: string[] = [];
  beforeAll(async () => {
    const [, block] = /## The command\n[\s\S]*?```sh\n([\s\S]*?)```/.exec(await readText("README.md"))!;
    for (const line of block.trimEnd().split("\n")) lines.push(line.replace(/\s+#.*$/, ""));
  });

  /** What is added to a command: to be short, and what only the bundled model needs. */
  const added = (): Record<string, readonly string[]> => ({
    train: ["--steps", "2", "--max-length", "32", "--sample-tokens", "4", "--held-out", "4"],
    generate: ["--max-tokens", "4"],
    chat: ["--max-tokens", "4", "--chat-template", join(folder, "chat.jinja")],
    compare: ["--steps", "1", "--max-length", "32", "--held-out", "4", "--methods", "ladder", "lora"],
  });
  const COMPUTE = new Set(["train", "eval", "generate", "chat", "compare"]);

  function argumentsOf(line: string): string[] {
    const words = [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain);
    const files: Record<string, string> = {
      MODEL: "tiny-books",
      DIR: join(folder, "golden"),
      "train.jsonl": DATA,
      "dev.jsonl": join(folder, "dev.jsonl"),
    };
    const args = words
      .slice(2)
      .map((word) => files[word] ?? (/^out\//.test(word) ? join(folder, word) : word));
    const [command] = args;
    return [...args, ...(added()[command] ?? []), ...(COMPUTE.has(command) ? ["--device", "wasm"] : [])];
  }

  const commandOf = (line: string) => line.split(" ")[2];

  async function trainLora(): Promise<void> {
    const train = argumentsOf(lines.find((line) => commandOf(line) === "train")!);
    const { exitCode, err } = await sidenet(...train, "--method", "lora", "--overwrite");
    expect(exitCode, err).toBe(0);
  }

  it("run one after the other, and leave what they promise", async () => {
    await mkdir(join(folder, "out"));
    expect(lines.length).toBeGreaterThanOrEqual(10);
    for (const line of lines) {
      expect(line).toMatch(/^npx sidenet \w+/);
      const command = commandOf(line);
      if (process.env.SIDENET_DEVICE === "cpu" && ["doctor", "check"].includes(command)) continue; // they ask for a GPU
      if (command === "export") await trainLora(); // a Ladder cannot be merged
      const { exitCode, err } = await sidenetWith(["Who is there?"], ...argumentsOf(line));
      expect(exitCode, `${line}\n${err}`).toBe(0);
    }
    for (const path of [
      "run/adapter_config.json",
      "run/report.html",
      "model.gguf",
      "merged/config.json",
      "compare/results.json",
    ]) {
      expect((await stat(join(folder, "out", path))).size, path).toBeGreaterThan(0);
    }
  }, 300_000); // a minute where no other process runs
});

/** The cells of each row of a table. */
const cellsOf = (text: string) =>
  [...text.matchAll(/^\| (.*) \|$/gm)].map(([, row]) => row.split(" | ").map((cell) => cell.trim()));

it.each([
  ["tensor", "T"],
  ["autograd", "A"],
])("the README of %s lists every code of its errors", async (name, letter) => {
  const source = join(ROOT, "packages", name, "src");
  const files = (await readdir(source, { recursive: true })).filter((file) => file.endsWith(".ts"));
  const texts = await Promise.all(files.map((file) => readFile(join(source, file), "utf8")));
  const codesIn = (text: string, quote: string) =>
    new Set(
      [...text.matchAll(new RegExp(`${quote}(${letter}-[A-Z][A-Z-]*)${quote}`, "g"))].map(([, code]) => code),
    );
  const listed = codesIn(await readText(`packages/${name}/README.md`), "`");
  expect([...listed].sort()).toEqual([...codesIn(texts.join("\n"), '"')].sort());
});

it("the README's peaks of memory are those of docs/memory.md, which are planned", async () => {
  const [, , ...rows] = cellsOf(
    /## Memory\n[\s\S]*?\n\n(\|[\s\S]*?)\n\n/.exec(await readText("README.md"))![1],
  );
  const [, table] = /<!-- Qwen2\.5-7B -->([\s\S]*?)<!--/.exec(await readText("docs/memory.md"))!;
  const planned = new Map(cellsOf(table).map(([method, ...peaks]) => [method, peaks.slice(0, 4)]));
  expect(rows).toHaveLength(3);
  for (const [method, ...peaks] of rows) {
    const name = method.replace(" with gradient checkpointing", " + checkpointing");
    expect(planned.get(name), method).toEqual(peaks);
  }
});

describe("the snippet of", () => {
  const packages: Record<string, object> = {
    "@sidenet/ladder": ladder,
    "@sidenet/ladder/node": ladderNode,
    "@sidenet/tensor": tensor,
    "@sidenet/tensor/node": tensorNode,
  };

  /** What the first snippet of a README prints, some of its text replaced. Throws when there is nothing to replace. */
  async function run(readme: string, replaced: Readonly<Record<string, string>> = {}): Promise<unknown[][]> {
    let [, source] = /```ts\n(import[\s\S]*?)```/.exec(await readText(readme))!;
    for (const [from, to] of Object.entries(replaced)) {
      if (!source.includes(from)) throw new Error(`${readme} has no ${from}`);
      source = source.replace(from, to);
    }
    const body = source.replaceAll(/import (\{.*?\}) from "(.*?)";/g, 'const $1 = packages["$2"];');
    const { outputText } = ts.transpileModule(`async function example() {${body}}`, {
      compilerOptions: { target: ts.ScriptTarget.ES2022 },
    });
    const printed: unknown[][] = [];
    const output = { log: (...values: unknown[]) => printed.push(values) };
    await new Function("packages", "console", `${outputText}\nreturn example();`)(packages, output);
    return printed;
  }

  it("tensor computes silu(x wᵀ), and counts its memory", async () => {
    const [[values], [peak]] = await run("packages/tensor/README.md", { '"auto"': '"wasm"' });
    const silu = (x: number) => x / (1 + Math.exp(-x));
    const found = Array.from(values as ArrayLike<number>);
    expect(found.length).toBe(2);
    for (const value of found) expect(value).toBeCloseTo(silu(1 - 3), 5);
    expect((peak as { weights: number }).weights).toBeGreaterThanOrEqual(24);
  });

  it("ladder learns its sentence, and saves the adapter", async () => {
    const out = join(folder, "adapter");
    await mkdir(out);
    const printed = await run("packages/ladder/README.md", {
      '"auto"': '"wasm"',
      '"SmolLM2-135M-Instruct.Q4_1.gguf"': '"tiny-books"',
      '"out"': JSON.stringify(out),
    });
    const losses = printed.map(([loss]) => Number(loss));
    expect(losses.length).toBe(11);
    expect(losses.at(-1)).toBeLessThan(losses[0] - 0.3);
    expect((await stat(join(out, "adapter_model.safetensors"))).size).toBeGreaterThan(0);
  });
});
