import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, TestRandom } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { parseSideConfig, type SideConfig, sideParameters } from "../src/methods/side-config.ts";
import { SideNetwork } from "../src/methods/side-network.ts";
import { parseModelConfig } from "../src/model/config.ts";
import { openAdapter, saveAdapter } from "../src/node/adapter-files.ts";
import { MODEL, SIDE } from "./golden-cases.ts";
import { drawModel, drawSide } from "./tiny-model.ts";

const model = parseModelConfig(MODEL);
const config = parseSideConfig(SIDE, "SIDE");

/** Saves a fresh side network to a new folder. */
async function saved(side: SideConfig = config): Promise<string> {
  const folder = temporaryFolder();
  using network = SideNetwork.initialize(new CpuDevice(), side, model);
  await saveAdapter(folder, network, { name: "tiny", config: model });
  return folder;
}

describe("a side network's files", () => {
  it("give back what was saved, whatever the network is like", async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(), async (seed) => {
        const pick = new TestRandom(seed);
        const drawnModel = drawModel(pick);
        const device = new CpuDevice();
        const folder = temporaryFolder();
        using side = SideNetwork.initialize(device, drawSide(pick, drawnModel), drawnModel);
        await saveAdapter(folder, side, { name: "tiny", config: drawnModel });
        using loaded = await openAdapter(folder, device, drawnModel);
        expect(loaded.configJson?.("")).toEqual(side.config);
        for (const [name, tensor] of side.parameters) {
          const copy = loaded.parameters.get(name);
          expect(await copy.read()).toEqual(await tensor.read());
          expect(copy.category).toBe("adapter");
        }
        expect((await readdir(folder)).sort()).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
      }),
      { numRuns: 20 },
    );
  });

  it("hold the names of methods.md and nothing else", async () => {
    const names = sideParameters(config, model).map(({ name }) => name);
    expect(names).toEqual(expect.arrayContaining(["ladder.rungs.1.down.weight", "ladder.rungs.1.gate"]));
    expect(names).toContain("ladder.layers.3.self_attn.q_proj.weight");
    const folder = await saved();
    const fields = JSON.parse(await readFile(join(folder, "adapter_config.json"), "utf8"));
    expect(fields).toMatchObject(SIDE);
  });

  it("are refused beside another model, of other sizes or only another depth", async () => {
    const folder = await saved();
    const device = new CpuDevice();
    for (const other of [
      { ...model, hiddenSize: 14 },
      { ...model, numHiddenLayers: 5 },
      { ...model, numHiddenLayers: 1 },
    ]) {
      const loading = openAdapter(folder, device, other);
      await expect(loading).rejects.toMatchObject({ code: "L-ADAPTER-MODEL" });
      await expect(loading).rejects.toThrow(config.base_model_name_or_path);
    }
    expect(device.memory.liveCount).toBe(0);
  });

  it("are refused when one of them is missing, broken or of another adapter", async () => {
    const device = new CpuDevice();
    const broken: [code: string, spoil: (folder: string) => Promise<unknown>][] = [
      ["L-FILE-MISSING", (folder) => rm(join(folder, "adapter_config.json"))],
      ["L-FILE-MISSING", (folder) => rm(join(folder, "adapter_model.safetensors"))],
      ["L-JSON", (folder) => writeFile(join(folder, "adapter_config.json"), "{")],
      ["L-ADAPTER-CONFIG", (folder) => writeFile(join(folder, "adapter_config.json"), '{"method":"ladder"}')],
      [
        "L-TENSOR-SHAPE",
        (folder) =>
          writeFile(join(folder, "adapter_config.json"), JSON.stringify({ ...config, intermediate_size: 9 })),
      ],
      [
        "L-TENSOR-UNEXPECTED",
        (folder) =>
          writeFile(join(folder, "adapter_config.json"), JSON.stringify({ ...config, fusion: "add" })),
      ],
      [
        "L-TENSOR-MISSING",
        (folder) =>
          writeFile(join(folder, "adapter_config.json"), JSON.stringify({ ...config, initial_rung: true })),
      ],
      [
        "L-SAFETENSORS-TRUNCATED",
        async (folder) => {
          const path = join(folder, "adapter_model.safetensors");
          await writeFile(path, (await readFile(path)).subarray(0, -4));
        },
      ],
    ];
    for (const [code, spoil] of broken) {
      const folder = await saved();
      await spoil(folder);
      await expect(openAdapter(folder, device, model), code).rejects.toMatchObject({ code });
      expect(device.memory.liveCount).toBe(0);
    }
  });

  it.each([
    ["not finite", Number.NaN, "F32", "L-ADAPTER-VALUES"],
    ["too large for F16", 65520, "F16", "L-CONVERT-RANGE"],
    ["too large for BF16", 3.4e38, "BF16", "L-CONVERT-RANGE"],
  ] as const)("are not touched when a parameter is %s", async (_, value, dtype, code) => {
    const folder = await saved();
    const before = await readFile(join(folder, "adapter_model.safetensors"));
    const device = new CpuDevice();
    using side = SideNetwork.initialize(device, { ...config, seed: 5 }, model);
    device.ops.fill(side.parameters.get("ladder.norm.weight"), { value });
    const saving = saveAdapter(folder, side, { name: "tiny", config: model }, dtype);
    await expect(saving).rejects.toMatchObject({ code });
    expect(await readFile(join(folder, "adapter_model.safetensors"))).toEqual(before);
    expect((await readdir(folder)).length).toBe(2);
  });
});
