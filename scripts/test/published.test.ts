// What goes to users with every package.
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { listPublished } from "../lib/published.mjs";

const ROOT = resolve(fileURLToPath(import.meta.url), "../../..");

it("every package has the licence and a README in its own folder, which npm packs from there alone", async () => {
  const licence = await readFile(join(ROOT, "LICENSE"), "utf8");
  const published = listPublished(ROOT);
  expect(published.length).toBe(4);
  for (const { folder, manifest } of published) {
    expect(manifest.license).toBe("MIT");
    expect(await readFile(join(ROOT, folder, "LICENSE"), "utf8"), folder).toBe(licence);
    expect((await readFile(join(ROOT, folder, "README.md"), "utf8")).slice(0, 80)).toContain(
      `# ${manifest.name}`,
    );
  }
});
