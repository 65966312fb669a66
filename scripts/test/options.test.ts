// The options of scripts: types by defaults, and mistakes told in two lines instead of a trace.
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, it } from "vitest";
import { temporaryFolder } from "../test-folder.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const HELPER = new URL("../lib/options.mjs", import.meta.url).href;

const folder = temporaryFolder();
let script: string;
beforeAll(() => {
  script = join(folder, "count-sheep.mjs");
  writeFileSync(
    script,
    `// Counts sheep.
//
//   node count-sheep.mjs --flock DIR

import { checkNames, scriptOptions } from ${JSON.stringify(HELPER)};

const options = scriptOptions(
  { flock: null, sheep: 100, rate: 0.5, names: ["Dolly"], sizes: [1, 2], aloud: false, by: { type: "string", multiple: true } },
  { required: ["flock"], positive: ["sizes"] },
);
checkNames("names", options.names, ["Dolly", "bess", "curly"], (name, entry) => entry.startsWith(name));
if (options.flock !== "a") throw Object.assign(new Error("no sheep"), { name: options.flock });
console.log(JSON.stringify(options));
`,
  );
});

const run = (...args: string[]) => spawnSync(process.execPath, [script, ...args], { encoding: "utf8" });

describe("scriptOptions", () => {
  it("gives values of the defaults' types", () => {
    expect(JSON.parse(run("--flock", "a").stdout)).toEqual({
      flock: "a",
      sheep: 100,
      rate: 0.5,
      names: ["Dolly"],
      sizes: [1, 2],
      aloud: false,
    });
    const given = [
      "--flock=a",
      "--sheep",
      "7",
      "--rate",
      "0.25",
      "--names",
      "b,c",
      "--sizes",
      "3,4",
      "--aloud",
    ];
    expect(JSON.parse(run(...given, "--by", "x", "--by", "y").stdout)).toEqual({
      flock: "a",
      sheep: 7,
      rate: 0.25,
      names: ["b", "c"],
      sizes: [3, 4],
      aloud: true,
      by: ["x", "y"],
    });
  });

  it.each([
    [["--sheep", "7"], "--flock is missing"],
    [["--flock", "a", "--goats", "1"], "Unknown option '--goats'"],
    [["--flock"], "Option '--flock <value>' argument missing"],
    [["--flock", "a", "--sheep", "many"], "--sheep many: wanted a whole number, 0 or more"],
    [["--flock", "a", "--sheep", "1.5"], "--sheep 1.5: wanted a whole number, 0 or more"],
    [["--flock", "a", "--rate=-1"], "--rate -1: wanted a number, 0 or more"],
    [["--flock", "a", "--sizes", "1,b"], "--sizes b: wanted a whole number, 1 or more"],
    [["--flock", "a", "--sizes", "1,0"], "--sizes 0: wanted a whole number, 1 or more"],
    [["--flock", "a", "--names", "Dol,ess"], "--names ess: there are Dolly, bess, curly"],
    [
      ["--flock", "a", "stray"],
      "Unexpected argument 'stray'. This command does not take positional arguments",
    ],
  ] as const)("%j: what is wrong and what there is, and 2", (args, why) => {
    const { status, stdout, stderr } = run(...args);
    const lines = stderr.trimEnd().split("\n");
    expect([status, stdout, lines[0]]).toEqual([2, "", `count-sheep: ${why}`]);
    expect(lines).toHaveLength(2);
    expect(lines[1]).toMatch(
      /^usage: node .*count-sheep\.mjs --flock TEXT \[--sheep 100\] .*\[--aloud\] \[--by TEXT\]\.\.\.$/,
    );
  });

  it("makes an error that a user can cause a message, and leaves a mistake of the script its trace", () => {
    const expected = run("--flock", "SidenetError");
    expect([expected.status, expected.stderr]).toEqual([1, "count-sheep: no sheep\n"]);
    const mistake = run("--flock", "TypeError");
    expect(mistake.status).toBe(1);
    expect(mistake.stderr).toMatch(/TypeError\]?: no sheep\n +at .*count-sheep\.mjs/);
  });

  it("--help prints the head of the script", () => {
    const { status, stdout } = run("--help");
    expect(status).toBe(0);
    expect(stdout).toMatch(
      /^node .*count-sheep\.mjs --flock TEXT[\s\S]*\n\nCounts sheep\.\n\n {2}node count-sheep\.mjs --flock DIR\n$/,
    );
  });
});

/** Scripts that people run, by path from the root. */
function scripts(): string[] {
  const found = ["scripts", "bench", "bench/gpu", "examples/pretrain"].flatMap((where) =>
    readdirSync(join(ROOT, where)).map((name) => join(where, name)),
  );
  return found.filter((path) => path.endsWith(".mjs"));
}

describe("scripts", () => {
  it("read options with the one helper", () => {
    const own = scripts().filter((path) => /\bparseArgs\(/.test(readFileSync(join(ROOT, path), "utf8")));
    expect(own).toEqual([]);
  });
});
