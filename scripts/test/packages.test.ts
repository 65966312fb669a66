import { describe, expect, it } from "vitest";
import { isInstalled } from "../lib/packages.mjs";

const entry = (version: string) => ({ version, integrity: `sha512-${version}` });
const lock = (packages: Record<string, object>) => ({ packages });

describe("isInstalled", () => {
  const wanted = lock({
    "": { name: "root" },
    "packages/a": { version: "0.1.0" },
    "node_modules/a": { resolved: "packages/a", link: true },
    "node_modules/b": entry("1.0.0"),
    "node_modules/b-other-platform": { ...entry("1.0.0"), optional: true },
  });

  it("accepts a tree without the optional packages of other platforms", () => {
    const installed = lock({ "node_modules/a": { link: true }, "node_modules/b": entry("1.0.0") });
    expect(isInstalled(wanted, installed)).toBe(true);
  });

  it("sees a missing package and another version", () => {
    expect(isInstalled(wanted, lock({ "node_modules/a": { link: true } }))).toBe(false);
    expect(
      isInstalled(wanted, lock({ "node_modules/a": { link: true }, "node_modules/b": entry("1.0.1") })),
    ).toBe(false);
  });
});
