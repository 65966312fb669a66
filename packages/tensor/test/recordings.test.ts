import { expect, it } from "vitest";
import { put } from "../src/webgpu/repeats.ts";

it("forgets the longest unused recordings beyond a number of commands, but not the last", () => {
  const all: Parameters<typeof put>[0] = new Map();
  const entry = (count: number) =>
    ({ recording: { commands: new Array(count) }, isProven: true }) as unknown as Parameters<typeof put>[2];
  for (const key of ["a", "b", "c"]) put(all, key, entry(40_000), 100_000);
  expect([...all.keys()]).toEqual(["b", "c"]);
  put(all, "b", entry(40_000), 100_000);
  put(all, "d", null, 100_000);
  expect([...all.keys()]).toEqual(["c", "b", "d"]);
  put(all, "e", entry(20_000), 100_000);
  expect([...all.keys()]).toEqual(["b", "d", "e"]);
  put(all, "f", entry(200_000), 100_000);
  expect([...all.keys()]).toEqual(["f"]);
});
