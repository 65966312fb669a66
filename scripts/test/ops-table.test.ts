import { readFileSync } from "node:fs";
import * as autograd from "@sidenet/autograd";
import * as tensor from "@sidenet/tensor";
import { expect, it } from "vitest";
import { FILE, opsTable } from "../ops-table.mjs";

it("docs/ops.md says what the op table says; if not: npm run build && node scripts/ops-table.mjs", () => {
  expect(readFileSync(FILE, "utf8") === opsTable({ tensor, autograd }), "docs/ops.md is stale").toBe(true);
});

it("lists every op", () => {
  const page = readFileSync(FILE, "utf8");
  for (const name of tensor.opNames) expect(page).toContain(`\n## ${name}\n`);
});

it("docs/adding-an-op.md shows rows as they stand in their files", () => {
  const root = new URL("../../", import.meta.url);
  const guide = readFileSync(new URL("docs/adding-an-op.md", root), "utf8");
  const diffs = [...guide.matchAll(/```diff\n--- a\/(.*)\n.*\n([^`]*)```/g)];
  expect(diffs).toHaveLength(2);
  for (const [, path = "", lines = ""] of diffs) {
    const row = lines.replaceAll(/^\+/gm, "");
    expect(readFileSync(new URL(path, root), "utf8")).toContain(row);
  }
});
