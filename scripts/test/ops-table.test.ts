import { readFileSync } from "node:fs";
import * as tensor from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { expect, it } from "vitest";
import { FILE, opsTable } from "../ops-table.mjs";

it("docs/ops.md says what the op table says; if not: npm run build && node scripts/ops-table.mjs", () => {
  expect(readFileSync(FILE, "utf8") === opsTable(), "docs/ops.md is stale").toBe(true);
});

it("lists every op", () => {
  const page = readFileSync(FILE, "utf8");
  for (const name of tensor.opNames) expect(page).toContain(`\n## ${name}\n`);
});

it("says of each op how it runs on WebAssembly, as a device does it", async () => {
  const page = readFileSync(FILE, "utf8");
  const device = await openNodeWasm({ threads: 1 });
  for (const name of tensor.opNames) {
    const [, claim] = new RegExp(`\\n## ${name}\\n[^]*?\\n\\| --- .*\\n\\| ([^|]*) \\|`).exec(page) ?? [];
    const before = device.statistics();
    for (const elem of ["f32", "f16"] as const) {
      for (let seed = 1; seed <= 40; seed++) {
        await tensor.runCase(
          device,
          name,
          tensor.drawCase(tensor.rowOf(name), new tensor.TestRandom(seed), elem),
        );
      }
    }
    const after = device.statistics();
    const [kernels, references] = [
      after.dispatches > before.dispatches,
      after.references > before.references,
    ];
    expect({ name, kernels }).toEqual({ name, kernels: claim?.startsWith("kernels") });
    if (claim !== "kernels") expect({ name, references }).toEqual({ name, references: claim !== "a view" });
  }
  device.dispose();
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
