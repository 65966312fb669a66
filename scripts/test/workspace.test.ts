// What npm and the build take on trust: that the packages' descriptions fit each other, the files and the lockfile.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { describe, expect, it } from "vitest";

const ROOT = resolve(import.meta.dirname, "../..");
const FOLDERS = [
  ...readdirSync(join(ROOT, "packages")).map((name) => join("packages", name)),
  "kernels",
  "bench",
];

interface Manifest {
  name: string;
  version: string;
  private?: boolean;
  /** A string leads to files that are no code. */
  exports?: Record<string, { source?: string; types: string; default: string } | string>;
  dependencies?: Record<string, string>;
  bin?: Record<string, string>;
}

interface LockEntry {
  link?: boolean;
  resolved?: string;
  integrity?: string;
  dependencies?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
}

const readJson = <T>(...path: string[]): T => JSON.parse(readFileSync(join(ROOT, ...path), "utf8"));
const manifests = FOLDERS.map((folder) => ({
  folder,
  manifest: readJson<Manifest>(folder, "package.json"),
}));

describe.each(manifests)("$manifest.name", ({ folder, manifest }) => {
  it("exports what the build makes of sources that exist", () => {
    for (const entry of Object.values(manifest.exports ?? {})) {
      if (typeof entry === "string") {
        expect(existsSync(join(ROOT, folder, entry.replace("/*", ""))), entry).toBe(true);
        continue;
      }
      const { source, types, default: script } = entry;
      if (source !== undefined) {
        expect(existsSync(join(ROOT, folder, source)), source).toBe(true);
        expect(script).toBe(source.replace("./src/", "./dist/").replace(/\.ts$/, ".js"));
      }
      expect(types).toBe(script.replace(/\.js$/, ".d.ts"));
    }
    for (const script of Object.values(manifest.bin ?? {})) {
      expect(existsSync(join(ROOT, folder, script)), script).toBe(true);
    }
  });

  it("depends on its siblings at the version they have", () => {
    for (const [name, version] of Object.entries(manifest.dependencies ?? {})) {
      const sibling = manifests.find((other) => other.manifest.name === name);
      if (sibling) expect(version, name).toBe(sibling.manifest.version);
    }
  });
});

describe("package-lock.json", () => {
  const { packages } = readJson<{ packages: Record<string, LockEntry> }>("package-lock.json");
  const installed = Object.entries(packages).filter(([path]) => path.includes("node_modules/"));

  it("pins every package by hash and names no download address", () => {
    for (const [path, { link, resolved, integrity }] of installed) {
      if (link) continue;
      expect(integrity, path).toMatch(/^sha512-/);
      expect(resolved, path).toBeUndefined();
    }
  });

  it("lists the binaries of every platform, or npm ci fails", () => {
    for (const [path, entry] of Object.entries(packages)) {
      for (const name of Object.keys({ ...entry.dependencies, ...entry.optionalDependencies })) {
        expect(isListed(path, name), `${name}, which ${path} needs`).toBe(true);
      }
    }
  });

  /** Node's rule: a package is looked for beside its user, then in each folder above. */
  function isListed(user: string, name: string): boolean {
    const folders = user === "" ? [] : user.split("/");
    return folders
      .map((_, i) => `${folders.slice(0, folders.length - i).join("/")}/node_modules/${name}`)
      .concat(`node_modules/${name}`)
      .some((path) => packages[path] !== undefined);
  }
});
