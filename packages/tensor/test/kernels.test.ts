import { readdirSync, readFileSync } from "node:fs";
import { DEFAULT_TILES, type DType, drawCase, MetaDevice, opNames, rowOf, TestRandom } from "@sidenet/tensor";
import { afterAll, beforeAll, expect, it } from "vitest";
import { create } from "webgpu";
import type { KernelCall } from "../src/op.ts";
import { dtypesOf } from "../src/webgpu/kernel-call.ts";
import { kernelSource, packParams } from "../src/webgpu/kernel-source.ts";
import { PipelineCache } from "../src/webgpu/pipelines.ts";

const folder = new URL("../../../kernels/", import.meta.url);
const files = readdirSync(folder)
  .filter((name) => name.endsWith(".wgsl"))
  .map((name) => name.slice(0, -".wgsl".length));

/** Tiles that use subgroup matrices wherever a kernel for them exists. */
const ALL_SUBGROUP_MATRICES = { ...DEFAULT_TILES, subgroupMatrixQueries: 16 };

/** Adapters that choose kernels differently. */
const PROFILES = [
  { adapterClass: "software", subgroups: true, subgroupSize: 8 },
  { adapterClass: "discrete", subgroups: true, subgroupSize: 32 },
  {
    adapterClass: "discrete",
    subgroups: true,
    subgroupSize: 32,
    subgroupMatrices: true,
    tiles: ALL_SUBGROUP_MATRICES,
  },
  { adapterClass: "integrated", subgroups: false, subgroupSize: 32 },
] as const;

const SEEDS = Array.from({ length: 16 }, (_, i) => i + 1);
/** Of ops over rows these draw some of up to 10,000 elements. */
const WIDE_SEEDS = [20, 30, 36, 44];

interface Variant {
  readonly kernel: string;
  readonly dtypes: Record<string, DType>;
  readonly consts: KernelCall["consts"];
  readonly bodies: KernelCall["bodies"];
}

/** Every variant that random cases of every op dispatch, on every kind of adapter, found without a GPU. */
function variantsInUse(): Variant[] {
  const found = new Map<string, Variant>();
  for (const profile of PROFILES) {
    const meta = new MetaDevice(profile, (kernel, call) => {
      const { params, consts, bodies } = call;
      packParams(kernelSource(kernel.split("/")[0]), params); // every parameter given, none unknown
      const variant = { kernel, dtypes: dtypesOf(call), consts, bodies };
      found.set(JSON.stringify(variant), variant);
    });
    for (const name of opNames) {
      for (const elem of ["f32", "f16", "i32", "u32"] as const) {
        for (const seed of /Norm|softmax|crossEntropy/.test(name) ? [...SEEDS, ...WIDE_SEEDS] : SEEDS) {
          const drawn = drawCase(rowOf(name), new TestRandom(seed), elem);
          const residuals = rowOf(name).signature.outputs.map((operand) => operand.name);
          meta.scope(() => {
            const inputs = drawn.inputs.map(
              (input) => input && meta.empty(input.shape, { dtype: input.dtype }),
            );
            meta.run(name, inputs, drawn.attrs, seed % 2 ? residuals : []);
          });
        }
      }
    }
  }
  return [...found.values()];
}

let device: GPUDevice;
let gpu: GPU | null = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);

beforeAll(async () => {
  const adapter = (await gpu!.requestAdapter())!;
  const requiredFeatures = [
    "shader-f16",
    "subgroups",
    "chromium-experimental-subgroup-matrix",
  ] as GPUFeatureName[];
  const requiredLimits = { maxImmediateSize: 64, maxStorageBuffersPerShaderStage: 8 };
  device = await adapter.requestDevice({ requiredFeatures, requiredLimits });
});
afterAll(() => {
  device.destroy();
  gpu = null;
});

it("every variant of every kernel compiles, and every entry point with parameters as uniforms, within eight bindings", async () => {
  const variants = variantsInUse();
  const uniformLayout = device.createBindGroupLayout({
    entries: [{ binding: 0, visibility: 4, buffer: { type: "uniform", hasDynamicOffset: true } }],
  });
  const kept = variants.filter(({ kernel }) => kernel === "norm/forward");
  const groups = new Set(kept.map(({ consts }) => `${consts?.LANES} x ${consts?.KEPT}`));
  expect([...groups].sort(), "groups over rows").toEqual([
    "128 x 4",
    "256 x 4",
    "256 x 8",
    "32 x 4",
    "64 x 4",
    "8 x 2",
  ]);
  const problems: string[] = [];
  const oneOfEachEntry = [...new Map(variants.map((variant) => [variant.kernel, variant])).values()];
  for (const immediates of [true, false]) {
    const cache = new PipelineCache(device, { immediates, uniformLayout: immediates ? null : uniformLayout });
    // Uniforms replace one line, the same in all variants.
    for (const variant of immediates ? variants : oneOfEachEntry) {
      const { kernel, dtypes, consts, bodies } = variant;
      device.pushErrorScope("validation");
      cache.get(kernel, dtypes, consts, bodies);
      const error = await device.popErrorScope();
      // The null backend has 16 KiB of workgroup memory; kernels for subgroup matrices are chosen where there is more.
      const bytes = Number(/workgroup storage \((\d+) bytes\)/.exec(error?.message ?? "")?.[1] ?? 0);
      const limit = { "matmul-matrix": 24576, "attention-matrix": 49152 }[kernel.split("/")[0]] ?? 0;
      const fitsAdapter = bytes > 0 && bytes <= limit;
      if (error && !fitsAdapter) problems.push(`${JSON.stringify(variant)}: ${error.message}`);
    }
  }
  expect(problems).toEqual([]);
  const used = new Set(variants.map(({ kernel }) => kernel.split("/")[0]));
  expect([...used].sort(), "a kernel that no op dispatches").toEqual([...files].sort());
}, 600_000); // some 900 compilations, beside whatever else the machine does

it.each(files)("kernels/%s.wgsl has a head that says what it computes, on what, and its grid", (file) => {
  const text = readFileSync(new URL(`${file}.wgsl`, folder), "utf8");
  const head = text.slice(0, text.search(/^(?!\/\/)/m));
  expect(head.split("\n").length).toBeGreaterThan(2);
  for (const word of ["out", "grid:"]) expect(head, `the head names "${word}"`).toContain(word);
  expect(kernelSource(file).bindings.size).toBeGreaterThan(0);
});

it.each(files)("kernels/%s.wgsl has at most 400 lines, and 60 in a function", (file) => {
  const text = readFileSync(new URL(`${file}.wgsl`, folder), "utf8");
  expect(text.trimEnd().split("\n").length).toBeLessThanOrEqual(400);
  const functions = [...text.matchAll(/^fn (\w+)[^{]*\{(?:.*\}$|[\s\S]*?^\})/gm)];
  expect(functions.length).toBeGreaterThan(0);
  for (const [body, name] of functions) expect(body.split("\n").length, name).toBeLessThanOrEqual(60);
});
