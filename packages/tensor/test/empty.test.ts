import {
  type AnyOpRow,
  CpuDevice,
  compareOutcomes,
  type Device,
  drawCase,
  type OpCase,
  opNames,
  rowOf,
  runCase,
  type Shape,
  SidenetError,
  TestRandom,
} from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { gpuAvailable, openTestGpu } from "./support.ts";

const ENGINES: [string, () => Promise<Device>][] = [
  ["WebAssembly", () => openNodeWasm({ poison: true })],
  ...(gpuAvailable
    ? ([
        ["WebGPU", openTestGpu],
        ["an integrated GPU's kernels", () => openTestGpu({ adapterClass: "integrated" })],
      ] as [string, () => Promise<Device>][])
    : []),
];

/** The first `size` of the values, with zeros after them where there are fewer. */
const fit = (values: ArrayLike<number>, size: number): number[] =>
  Array.from({ length: size }, (_, i) => values[i] ?? 0);

/** A random case of an op in which the extents of these letters are 0; of a run `N..`, one axis is. */
function emptyCase(row: AnyOpRow, letters: readonly string[], seed: number): OpCase {
  const pick = new TestRandom(seed);
  const draw: AnyOpRow["draw"] = (random) => {
    const { dims, values = {}, ...rest } = row.draw(random);
    const emptied = (letter: string, extent: number | Shape): number | Shape => {
      if (!letters.includes(letter)) return extent;
      if (typeof extent === "number") return 0;
      const axis = pick.int(0, extent.length - 1);
      return extent.length === 0 ? [0] : extent.map((length, i) => (i === axis ? 0 : length));
    };
    const extents = Object.entries(dims).map(([letter, extent]) => [letter, emptied(letter, extent)]);
    const fitting = Object.entries(values).map(([name, make]) => [
      name,
      (size: number) => fit(make(size), size),
    ]);
    return { ...rest, dims: Object.fromEntries(extents), values: Object.fromEntries(fitting) };
  };
  return drawCase({ ...row, draw }, pick);
}

/** Each letter of the op's inputs alone, and each two of them. */
function lettersOf({ signature }: AnyOpRow): string[][] {
  const all = [...new Set(signature.inputs.flatMap(({ letters }) => letters))];
  return all.flatMap((a, i) => [[a], ...all.slice(i + 1).map((b) => [a, b])]);
}

describe.each(ENGINES)("every op over empty tensors on %s", (_, open) => {
  let engine: Device;
  const reference = new CpuDevice({ precision: "f64" });
  beforeAll(async () => {
    engine = await open();
  });
  afterAll(() => engine?.dispose());

  it.each(opNames)("%s agrees with its reference", async (name) => {
    const row = rowOf(name);
    for (const letters of lettersOf(row)) {
      for (let seed = 1; seed <= 4; seed++) {
        const drawn = emptyCase(row, letters, seed);
        const expected = await runCase(reference, name, drawn).catch((error: unknown) => {
          if (error instanceof SidenetError) return null; // the op takes no such extent
          throw error;
        });
        if (expected === null) continue;
        const isDefined = expected.every(({ values }) => values?.every((x) => !Number.isNaN(x)));
        if (!isDefined) continue; // a mean of nothing, or a scale of 1/√0
        const problem = compareOutcomes(name, drawn, await runCase(engine, name, drawn), expected);
        const shapes = drawn.inputs.map((input) => input && `[${input.shape}]`);
        if (problem !== null) expect.fail(`${letters} = 0, of ${shapes.join(" ")}: ${problem}`);
      }
    }
  });
});
