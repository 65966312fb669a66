import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Random } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../scripts/test-folder.ts";
import { differs, findBase } from "../regress/base-tree.mjs";
import { judge } from "../regress/judge.mjs";

type Side = "base" | "change";

/** Times of a machine that others use: 1 ms, up to three times as long now and then, and in one of four processes always slow. */
function noisyPairs(seed: number, slowdown: Readonly<Record<string, number>>) {
  const random = new Random(seed, 0);
  const uniform = () => random.word() / 2 ** 32;
  return async () => {
    const biasOf = () => (uniform() < 0.25 ? 1.4 : 1 + 0.05 * uniform());
    const bias: Record<Side, number> = { base: biasOf(), change: biasOf() };
    const sample = async (side: Side, row: string) => {
      const load = uniform() < 0.3 ? 1 + 2 * uniform() : 1 + 0.1 * uniform();
      return bias[side] * load * (side === "change" ? (slowdown[row] ?? 1) : 1);
    };
    return { sample, close: async () => {} };
  };
}

const SETTINGS = { threshold: 0.15, rounds: 3, pairs: [3, 25] };

describe("judge", () => {
  it("finds most rows that are 30 % slower on a noisy machine, and no other", async () => {
    let found = 0;
    for (let seed = 1; seed <= 100; seed++) {
      const rows = ["a", "b", "c", "d", "e"];
      const results = await judge(rows, noisyPairs(seed, { c: 1.3 }), SETTINGS);
      const slower = results.filter((result: { slower: boolean }) => result.slower);
      expect(slower.filter(({ row }: { row: string }) => row !== "c")).toEqual([]);
      found += slower.length;
    }
    expect(found).toBeGreaterThan(80);
  });

  it("takes the median over rounds of the fastest of two samples each, of which both sides are first as often", async () => {
    const order: Side[] = [];
    const times = { base: [9, 1, 2, 5, 7, 4], change: [3, 8, 8, 4, 4, 9] };
    const sample = async (side: Side) => {
      order.push(side);
      return times[side][order.filter((other) => other === side).length - 1];
    };
    const open = async () => ({ sample, close: async () => {} });
    const [{ ratios }] = await judge(["row"], open, { ...SETTINGS, pairs: [1, 1] });
    expect(ratios).toEqual([2]); // of 3 / 1, 4 / 2 and 4 / 4
    const [baseFirst, changeFirst] = [
      ["base", "change"],
      ["change", "base"],
    ];
    expect(order).toEqual([baseFirst, changeFirst, changeFirst, baseFirst, baseFirst, changeFirst].flat());
  });

  it("goes on with what seems slower, in new processes, and calls it so by the median of all of them", async () => {
    const notes: string[] = [];
    const measured = async (ratios: readonly number[]) => {
      let [opened, closed] = [0, 0];
      const open = async (i: number) => {
        opened++;
        const sample = async (side: Side) => (side === "change" ? (ratios[i] ?? 1) : 1);
        return { sample, close: async () => void closed++ };
      };
      const note = (text: string) => notes.push(text);
      const [result] = await judge(["row"], open, { ...SETTINGS, pairs: [3, 5], note });
      expect([opened, closed]).toEqual([result.ratios.length, result.ratios.length]);
      return result;
    };
    expect(await measured([1.4, 1, 1])).toEqual({ row: "row", ratios: [1.4, 1, 1], slower: false });
    expect(await measured([1.06, 1.06, 1.06])).toMatchObject({ ratios: [1.06, 1.06, 1.06], slower: false });
    expect(notes).toEqual([]);
    expect(await measured([1.4, 1.4, 1])).toEqual({ row: "row", ratios: [1.4, 1.4, 1, 1, 1], slower: false });
    expect(notes).toEqual(["measured again: row"]);
    expect(await measured([1.4, 1.1, 1, 1.4, 1.4])).toMatchObject({ slower: true });
    const little = [1.1, 1.1, 1.1, 1.1, 1.1];
    expect(await measured(little)).toMatchObject({ ratios: little, slower: false });
  });

  it("tells what the change cannot run from what the base does not have, once, and measures the rest", async () => {
    const asked: string[] = [];
    const open = async () => ({
      close: async () => {},
      sample: async (side: Side, row: string) => {
        asked.push(`${side} ${row}`);
        if (row === "broken" && side === "change") throw Object.assign(new Error("wrong"), { side });
        if (row === "new" && side === "base") throw Object.assign(new Error("no such op"), { side });
        return 1;
      },
    });
    const results = await judge(["broken", "new", "same"], open, SETTINGS);
    expect(results).toEqual([
      { row: "broken", ratios: [], slower: false, failed: "wrong" },
      { row: "new", ratios: [], slower: false, absent: "no such op" },
      { row: "same", ratios: [1, 1, 1], slower: false },
    ]);
    expect(asked.filter((call) => call === "change broken" || call === "base new")).toHaveLength(2);
  });

  it("ends with an error that is of no side, and closes the processes", async () => {
    let closed = 0;
    const open = async () => ({
      sample: async () => Promise.reject(new Error("the worker is gone")),
      close: async () => void closed++,
    });
    await expect(judge(["row"], open, SETTINGS)).rejects.toThrow("the worker is gone");
    expect(closed).toBe(1);
  });

  it("begins no row after the deadline, and leaves it without a ratio", async () => {
    const results = await judge(["late"], noisyPairs(1, {}), { ...SETTINGS, deadline: 0 });
    expect(results).toEqual([{ row: "late", ratios: [], slower: false }]);
  });

  it("measures after the deadline only what seems slower", async () => {
    const deadline = performance.now() + 50;
    const sample = async (side: Side, row: string) => {
      while (row === "same" && performance.now() <= deadline)
        await new Promise((done) => setTimeout(done, 5));
      return side === "change" && row === "slow" ? 1.4 : 1;
    };
    const open = async () => ({ sample, close: async () => {} });
    const results = await judge(["slow", "same", "late"], open, { ...SETTINGS, pairs: [3, 5], deadline });
    expect(results).toEqual([
      { row: "slow", ratios: [1.4, 1.4, 1.4, 1.4, 1.4], slower: true },
      { row: "same", ratios: [1], slower: false },
      { row: "late", ratios: [], slower: false },
    ]);
  });
});

describe("the base", () => {
  /** A repository of so many commits to packages/, on main. */
  function repository(commits: number) {
    const root = temporaryFolder();
    const git = (...args: string[]) =>
      execFileSync("git", ["-c", "user.name=t", "-c", "user.email=t@t", ...args], {
        cwd: root,
        encoding: "utf8",
      }).trim();
    git("init", "-q", "-b", "main");
    mkdirSync(join(root, "packages"));
    const commit = (text: string) => {
      writeFileSync(join(root, "packages/file"), text);
      git("add", "-A");
      git("commit", "-q", "-m", text);
      return git("rev-parse", "HEAD");
    };
    const made = Array.from({ length: commits }, (_, i) => commit(`${i}`));
    return { root, git, commit, made };
  }

  it("is the parent on main, where a branch left main on a branch, and HEAD beside uncommitted changes", () => {
    const { root, git, commit, made } = repository(2);
    expect(findBase(root)).toEqual({ commit: made[0] });
    git("checkout", "-q", "-b", "topic");
    commit("one");
    const tip = commit("two");
    expect(findBase(root)).toEqual({ commit: made[1] });
    expect(differs(root, made[1])).toBe(true);
    expect(differs(root, tip)).toBe(false);
    writeFileSync(join(root, "packages/file"), "three");
    expect(findBase(root)).toEqual({ commit: tip });
  });

  it("is skipped, and said to be, where a clone has one commit", () => {
    const { root } = repository(1);
    expect(findBase(root).skip).toMatch(/no parent/);
    expect(findBase(tmpdir()).skip).toMatch(/not a git checkout/);
  });

  it("that is named and missing is an error", () => {
    const { root } = repository(1);
    expect(() => findBase(root, "nowhere")).toThrow(/nowhere is no commit/);
  });
});
