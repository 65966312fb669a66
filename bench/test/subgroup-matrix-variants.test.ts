import { readFileSync } from "node:fs";
import { afterAll, beforeAll, expect, it } from "vitest";
import { create } from "webgpu";
import { subgroupMatrixVariants } from "../gpu/subgroup-matrix-variants.mjs";

const text = readFileSync(new URL("../../kernels/matmul-matrix.wgsl", import.meta.url), "utf8");
let gpu: GPU | null = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]); // no subgroup matrices, but it compiles for them
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

it.each(subgroupMatrixVariants(text))("the kernel for subgroup matrices compiles: $name", async (variant) => {
  const module = device.createShaderModule({ code: variant.text });
  const { messages } = await module.getCompilationInfo();
  expect(messages.map(({ lineNum, message }) => `${lineNum}: ${message}`)).toEqual([]);
});

it("throws if the kernel no longer contains what a variant changes", () => {
  expect(() => subgroupMatrixVariants(text.replace("blockA[to] = fa0;", "blockA[to] = fa9;"))).toThrow(
    "adapt",
  );
});
