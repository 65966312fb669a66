import { readFileSync } from "node:fs";
import { afterAll, beforeAll, expect, it } from "vitest";
import { create } from "webgpu";
import { unitVariants } from "../gpu/unit-variants.mjs";

const text = readFileSync(new URL("../../kernels/matmul-matrix.wgsl", import.meta.url), "utf8");
let gpu: GPU | null = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]); // it has no units, and compiles for them
let device: GPUDevice;

beforeAll(async () => {
  const adapter = (await gpu?.requestAdapter()) as GPUAdapter;
  const requiredFeatures = [
    "shader-f16",
    "subgroups",
    "chromium-experimental-subgroup-matrix",
  ] as GPUFeatureName[];
  device = await adapter.requestDevice({ requiredFeatures, requiredLimits: { maxImmediateSize: 64 } });
});
afterAll(() => {
  device.destroy();
  gpu = null;
});

it.each(unitVariants(text))("the kernel for matrix units compiles: $name", async (variant) => {
  const module = device.createShaderModule({ code: variant.text });
  const { messages } = await module.getCompilationInfo();
  expect(messages.map(({ lineNum, message }) => `${lineNum}: ${message}`)).toEqual([]);
});

it("says so where the kernel no longer has what a variant changes", () => {
  expect(() => unitVariants(text.replace("blockA[to] = fa0;", "blockA[to] = fa9;"))).toThrow("mend");
});
