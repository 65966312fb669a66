import { readFile } from "node:fs/promises";
import * as tensor from "@sidenet/tensor";
import ts from "typescript";
import { expect, it } from "vitest";
import * as autograd from "../src/index.ts";

const packages: Record<string, object> = { "@sidenet/autograd": autograd, "@sidenet/tensor": tensor };

it("the README's example runs, and its loss falls", async () => {
  const readme = await readFile(new URL("../README.md", import.meta.url), "utf8");
  const [, source] = /```ts\n(import[\s\S]*?)```/.exec(readme)!;
  const body = source.replaceAll(/import (\{.*?\}) from "(.*?)";/g, 'const $1 = packages["$2"];');
  const { outputText } = ts.transpileModule(`async function example() {${body}}`, {
    compilerOptions: { target: ts.ScriptTarget.ES2022 },
  });
  const losses: number[] = [];
  const output = { log: (_step: number, loss: number) => losses.push(loss) };
  await new Function("packages", "console", `${outputText}\nreturn example();`)(packages, output);
  expect(losses.length).toBe(3);
  expect(losses[2]).toBeLessThan(losses[0]);
  expect(losses[2]).toBeLessThan(0.5);
});
