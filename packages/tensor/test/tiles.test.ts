import { writeFileSync } from "node:fs";
import { CpuDevice, DEFAULT_TILES, TILE_CANDIDATES, type Tiles, type WebGpuDevice } from "@sidenet/tensor";
import { openNodeWebGpu, tileCachePath, tileCacheText } from "@sidenet/tensor/node";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { rowOf, TestRandom } from "../src/index.ts";
import { drawCase } from "../src/op-case.ts";
import { areTiles } from "../src/tiles.ts";
import { compareOutcomes, runCase } from "../src/verify.ts";
import { gpuAvailable, openTestGpu } from "./support.ts";

const folder = temporaryFolder();
beforeAll(() => vi.stubEnv("SIDENET_CACHE", folder));
afterAll(() => void vi.unstubAllEnvs());

describe("areTiles", () => {
  it("takes whole tables of candidates and nothing else", () => {
    expect(areTiles(DEFAULT_TILES)).toBe(true);
    expect(areTiles({ ...DEFAULT_TILES, rowsBlock: 7 })).toBe(false);
    expect(areTiles({ ...DEFAULT_TILES, more: 1 })).toBe(false);
    expect(areTiles({ rowsBlock: 8 })).toBe(false);
    expect(areTiles(null)).toBe(false);
  });
});

/** Every table that differs from the default in one entry. */
const TABLES: Tiles[] = Object.entries(TILE_CANDIDATES).flatMap(([name, values]) =>
  values.map((value) => ({ ...DEFAULT_TILES, [name]: value })),
);

describe.runIf(gpuAvailable).each([
  ["a software driver", {}],
  ["a GPU", { adapterClass: "discrete" as const }],
])("matmul as on %s", (_, options) => {
  it("agree with the reference whatever the table says", async () => {
    const device = (await openTestGpu(options)) as WebGpuDevice;
    const reference = new CpuDevice({ precision: "f64" });
    for (const tiles of TABLES) {
      device.retile(tiles);
      for (let seed = 1; seed <= 6; seed++) {
        const drawn = drawCase(rowOf("linear"), new TestRandom(seed), "f32");
        const expected = await runCase(reference, "linear", drawn);
        const got = await runCase(device, "linear", drawn);
        expect(compareOutcomes("linear", drawn, got, expected), JSON.stringify(tiles)).toBeNull();
      }
    }
    device.dispose();
  });
});

describe.runIf(gpuAvailable)("the cache of tiles", () => {
  const opened: WebGpuDevice[] = [];
  const open = async () => {
    const device = await openNodeWebGpu();
    opened.push(device);
    return device;
  };
  afterEach(() => {
    for (const device of opened.splice(0)) device.dispose();
    vi.restoreAllMocks();
  });

  it("is nothing where no file is, and what was written where one is", async () => {
    const first = await open();
    expect(first.profile.tiles).toBeUndefined();
    const tiles = { ...DEFAULT_TILES, rowsBlock: 8, fewRows: 2 };
    writeFileSync(tileCachePath(), tileCacheText(first, tiles));
    expect((await open()).profile.tiles).toEqual(tiles);
  });

  it("is ignored when it is damaged, of another adapter or of other kernels, with one warning that names the file", async () => {
    const text = tileCacheText(await open(), DEFAULT_TILES);
    const entry = JSON.parse(text);
    const bad = [
      text.slice(0, 40),
      "null",
      JSON.stringify({ ...entry, format: 99 }),
      JSON.stringify({ ...entry, tiles: { ...entry.tiles, rowsBlock: 3 } }),
      JSON.stringify({ ...entry, measuredFor: { ...entry.measuredFor, description: "another driver" } }),
      JSON.stringify({ ...entry, measuredFor: { ...entry.measuredFor, kernels: "0" } }),
    ];
    const warn = vi.spyOn(process, "emitWarning").mockImplementation(() => {});
    for (const content of bad) {
      writeFileSync(tileCachePath(), content);
      expect((await open()).profile.tiles, content.slice(0, 60)).toBeUndefined();
    }
    expect(warn).toHaveBeenCalledTimes(1);
    expect(warn.mock.calls[0][0]).toContain(tileCachePath());
    writeFileSync(tileCachePath(), text);
    expect((await open()).profile.tiles).toEqual(DEFAULT_TILES);
  });
});
