// A worker of a page, or a service, answers prompts while it trains.
import { CpuDevice, type Device, TestRandom } from "@sidenet/tensor";
import { openNodeWasm, openNodeWebGpu } from "@sidenet/tensor/node";
import { expect, it } from "vitest";
import { generate, type MethodOptions, makeAdapter, Trainer } from "../src/index.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";

const kinds: readonly (readonly [string, () => Device | Promise<Device>])[] = [
  ["the reference", () => new CpuDevice()],
  ["WebAssembly", () => openNodeWasm({ threads: 2 })],
  ...(process.env.SIDENET_DEVICE === "cpu"
    ? []
    : ([
        ["WebGPU", () => openNodeWebGpu()],
        ["a GPU's kernels", () => openNodeWebGpu({ adapterClass: "discrete" })],
      ] as const)),
];
const methods: readonly MethodOptions["method"][] = ["ladder", "lora"];
const STEPS = 8; // of which a GPU issues the commands of the later ones again
const model = drawModel(new TestRandom(5));
const batch = drawBatch(new TestRandom(6), model);

/** The losses of a run, and the continuations of the frozen model that were made during it. */
async function train(device: Device, method: MethodOptions["method"], answers: boolean) {
  using decoder = randomDecoder(device, model);
  using adapter = makeAdapter({ method }, decoder, "tiny");
  using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.01 });
  let isTraining = true;
  const texts: string[] = [];
  const answering = (async () => {
    while (answers && isTraining) {
      texts.push(String(await generate(decoder, null, [1, 2], { maxTokens: 3 })));
      await generate(decoder, adapter, [1, 2], { maxTokens: 3 });
    }
  })();
  const losses: number[] = [];
  for (let step = 0; step < STEPS; step++) losses.push((await trainer.step(batch)).loss);
  isTraining = false;
  await answering;
  const alone = String(await generate(decoder, null, [1, 2], { maxTokens: 3 }));
  return { losses, texts, alone };
}

it.each(kinds)(
  "on %s, prompts that are answered during a run change nothing, nor does the run change the answers",
  async (_, open) => {
    using device = await open();
    for (const method of methods) {
      const quiet = await train(device, method, false);
      const busy = await train(device, method, true);
      expect(busy.losses).toEqual(quiet.losses);
      expect(busy.texts.length).toBeGreaterThan(0);
      expect(new Set([...busy.texts, busy.alone])).toEqual(new Set([quiet.alone]));
    }
  },
);
