import { kernels } from "@sidenet/kernels";
import {
  CpuDevice,
  type Device,
  dynamicMap,
  nf4Table,
  Random,
  SidenetError,
  type Tensor,
  TestRandom,
  type WebGpuDevice,
} from "@sidenet/tensor";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { gpuAvailable, openTestGpu, propertyRuns } from "./support.ts";

/** Fails unless `body` throws this code with this text. */
function refused(body: () => unknown, code: string, text: string): void {
  let thrown: unknown = null;
  try {
    body();
  } catch (error) {
    thrown = error;
  }
  expect(thrown).toBeInstanceOf(SidenetError);
  expect((thrown as SidenetError).code).toBe(code);
  expect((thrown as SidenetError).message).toContain(text);
}

it("a weight is scaled in float32: by a rounded reciprocal, to a rounded product", async () => {
  const device = new CpuDevice();
  using table = device.tensor(nf4Table(), [nf4Table().length]);
  for (const [largest, weight, code] of [
    [1.9987108707427979, -1.6950994729995728, 1], // 0 by the exact reciprocal
    [1.8626830577850342, -0.08479867875576019, 6], // 7 by the exact product
  ]) {
    using w = device.tensor(Float32Array.of(largest, weight), [2]);
    const [codes, absmax] = device.ops.nf4Quantize(w, table);
    expect(Array.from(await codes.read())).toEqual([(15 << 4) | code]);
    codes.dispose();
    absmax.dispose();
  }
});

describe("the dynamic map", () => {
  it("has 256 ascending entries with 0 and 1, and its negatives where there is a sign", () => {
    const signed = dynamicMap(true);
    expect([signed.length, signed[127], signed[0], signed[255]]).toEqual([
      256,
      0,
      Math.fround(-0.99296874),
      1,
    ]);
    const unsigned = dynamicMap(false);
    expect([unsigned.length, unsigned[0], unsigned[255]]).toEqual([256, 0, 1]);
    for (const map of [signed, unsigned]) expect(new Set(map).size).toBe(256);
    for (const x of signed.slice(128, 255)) expect(signed.includes(-x)).toBe(true);
  });
});

const devices = gpuAvailable ? (["cpu", "webgpu"] as const) : (["cpu"] as const);

describe.each(devices)("NF4 on %s", (kind) => {
  let device: Device;
  beforeAll(async () => {
    // Bindings of 72 KiB: a weight of 100,000 elements goes through in windows, which are smaller than a binding, since what is
    // stored by block starts at aligned offsets too.
    device = kind === "cpu" ? new CpuDevice() : await openTestGpu({ maxBindingBytes: 72 * 1024 });
  });
  afterAll(() => device?.dispose());

  const quantize = (w: Tensor) => {
    const table = w.device.tensor(nf4Table(), [273]);
    const [codes, absmax] = w.device.ops.nf4Quantize(w, table);
    return { codes, table, absmax };
  };

  const offsetOf = async (scales: Float32Array) => {
    const table = device.tensor(nf4Table(), [273]);
    const absmax = device.tensor(scales, [scales.length]);
    const made = device.ops.nf4QuantizeScales(absmax, table);
    const offset = (await table.read())[272];
    for (const tensor of [table, absmax, ...made]) tensor.dispose();
    return offset;
  };

  // Computed by torch.mean of PyTorch 2.15; one after the other, the sums of the middle three round to another mean.
  it.each([
    [[2.2040534, 0.08784467, 2.399576, 1.191412], 1.4707214832305908],
    [[2.0478423, 0.9154485, 1.3906369, 1.364959, 1.7174159], 1.4872605800628662],
    [[0.85298896, 1.0193272, 1.5718224, 2.3941917, 2.315305, 0.0336737037], 1.3645515441894531],
    [[1.5177624, 0.70977384, 2.2710223, 0.70376980305, 1.9411571, 1.0668643, 1.3355484], 1.3636997938156128],
    [
      [2.4134433, 1.9655366, 0.53037035, 2.4743168, 2.4106526, 2.8303423, 0.65916055, 1.2530911, 1.4709423],
      1.7786507606506348,
    ],
  ])("the offset of a few scales is PyTorch's mean of them: %j", async (scales, mean) => {
    expect(await offsetOf(Float32Array.from(scales))).toBe(mean);
  });

  // Also by PyTorch: each differs from the exact mean or from that of sums one after the other.
  it.each([
    [8191, 0.9999651908874512],
    [8192, 1.0000159740447998],
    [16_421, 1.000065565109253],
    [18_000, 1.0000135898590088],
  ])("the offset of %i scales is PyTorch's mean of them", async (count, mean) => {
    const scales = Float32Array.from({ length: count }, (_, i) => ((i * 7919) % 10_007) / 10_007 + 0.5);
    expect(await offsetOf(scales)).toBe(mean);
  });

  it.each(["f32", "f16"] as const)("writes in windows the bytes of the reference: %s", async (dtype) => {
    const values = new TestRandom(4).normals(100_001);
    const [got, want] = [device, new CpuDevice()].map((on) =>
      on.scope(() => {
        const { codes, absmax } = quantize(on.tensor(values, [values.length], { dtype }));
        return [codes, absmax];
      }),
    );
    for (const [i, tensor] of got.entries()) expect(await tensor.read()).toEqual(await want[i].read());
    for (const tensor of [...got, ...want]) tensor.dispose();
  });

  it("what was quantized once is quantized to itself", async () => {
    const property = fc.asyncProperty(fc.nat(), fc.constantFrom(1, 130, 9999), async (seed, most) => {
      const pick = new TestRandom(seed);
      const size = pick.int(1, most);
      const kept = device.scope(() => {
        const once = quantize(device.tensor(pick.normals(size, 10 ** pick.int(-3, 4)), [size]));
        const w = device.ops.nf4Dequantize(once.codes, once.table, once.absmax, null, { shape: [size] });
        const twice = quantize(w);
        return [once.codes, twice.codes, once.absmax, twice.absmax];
      });
      const [codes, codesAgain, absmax, absmaxAgain] = await Promise.all(kept.map((tensor) => tensor.read()));
      expect(codesAgain).toEqual(codes);
      expect(absmaxAgain).toEqual(absmax);
      for (const tensor of kept) tensor.dispose();
      expect(device.memory.liveCount).toBe(0);
    });
    await fc.assert(property, propertyRuns(12));
  });

  it("a matmul with the identity gives the weight, in panels and in windows of codes", async () => {
    const [O, I] = [1088, 128]; // 69,632 bytes of codes
    for (const [N, panelBytes] of [
      [1, 2 ** 23],
      [I, 2 ** 16],
    ] as const) {
      const [w, y] = device.scope(() => {
        const { codes, table, absmax } = quantize(device.tensor(new TestRandom(3).normals(O * I), [O, I]));
        const x = new Float32Array(N * I);
        for (let n = 0; n < N; n++) x[n * I + n] = 1;
        const attrs = { out: O, panelBytes };
        return [
          device.ops.nf4Dequantize(codes, table, absmax, null, { shape: [O, I] }),
          device.ops.nf4Linear(device.tensor(x, [N, I]), codes, table, absmax, null, null, attrs),
        ];
      });
      const [weights, products] = [await w.read(), await y.read()];
      for (let n = 0; n < N; n++) {
        for (let o = 0; o < O; o++) expect(products[n * O + o]).toBeCloseTo(weights[o * I + n], 6);
      }
      for (const tensor of [w, y]) tensor.dispose();
    }
  });

  it("refuses block sizes, lengths and a bias that are not those of one weight", () => {
    device.scope(() => {
      const { codes, table, absmax } = quantize(device.zeros([10, 64]));
      const x = device.zeros([2, 64]);
      const { ops } = device;
      const linear = (attrs: object) => () => ops.nf4Linear(x, codes, table, absmax, null, null, attrs);
      refused(linear({ out: 10, block: 48 }), "T-ATTR", "blocks of 48");
      refused(linear({ out: 10, block: 32 }), "T-SHAPE", "absmax is [10]");
      refused(linear({ out: 11 }), "T-SHAPE", "codes is [320]");
      refused(linear({ out: 0.5 }), "T-ATTR", "0.5");
      for (const part of [
        { out: 3, whole: [10, 64], from: [8, 0] }, // past its end
        { out: 2, whole: [10, 64], from: [4, 0] },
        { out: 2, whole: [10, 64], from: [-8, 0] },
        { out: 2, whole: [5, 128], from: [0, 60] },
        { out: 2, whole: [10, 64] },
        { out: 2, from: [8, 0] },
      ]) {
        refused(linear(part), "T-ATTR", "wanted one inside the weight");
      }
      refused(linear({ out: 2, whole: [11, 64], from: [8, 0] }), "T-SHAPE", "codes is [320]");
      refused(
        () => ops.nf4Linear(x, codes, table, absmax, codes, null, { out: 10 }),
        "T-SHAPE",
        "absmax is [10]",
      );
      const bias = device.zeros([9]);
      refused(
        () => ops.nf4Linear(x, codes, table, absmax, null, bias, { out: 10 }),
        "T-SHAPE",
        "bias is [9]",
      );
    });
  });
});

it("a part is quantized only where it fits the whole, from a multiple of 64 blocks on", () => {
  const device = new CpuDevice();
  const [P, B] = [4096, 128]; // of 8192 elements
  const quantize = (
    at: number,
    count: number,
    change: { P?: number; B?: number; L?: number; block?: number },
  ) =>
    device.scope(() => {
      const { block = 64, L = 16 } = change;
      const codes = device.zeros([change.P ?? P], { dtype: "u8" });
      const absmax = device.zeros([change.B ?? B]);
      const table = device.zeros([L]);
      device.ops.nf4QuantizePart(codes, absmax, device.zeros([count]), table, { at, block });
    });
  const whole: [number, number][] = [
    [0, 8192],
    [4096, 4096],
    [0, 64],
    [4096, 0],
  ];
  for (const [at, count] of whole) quantize(at, count, {});
  quantize(4096, 100, { P: 2098, B: 66 }); // the last part
  for (const at of [64, 100, -4096])
    refused(() => quantize(at, 64, {}), "T-SHAPE", `at = ${at} is not a multiple`);
  for (const change of [{ P: P - 1 }, { B: B - 1 }]) {
    refused(() => quantize(4096, 4096, change), "T-SHAPE", "4096 elements from 4096 on pass the end");
  }
  refused(() => quantize(0, 100, {}), "T-SHAPE", "a part of 100 elements that is not the last");
  refused(() => quantize(0, 64, { L: 15 }), "T-SHAPE", "the table has 15 entries");
  refused(() => quantize(0, 64, { block: 48 }), "T-ATTR", "blocks of 48");
  const scales = () =>
    device.scope(() => device.ops.nf4QuantizeScales(device.zeros([8]), device.zeros([272])));
  refused(scales, "T-SHAPE", "the table has 272 entries");
});

describe.runIf(gpuAvailable)("nf4-dequantize", () => {
  it("writes in f16 what it writes in f32, rounded, and nothing past its last word", async () => {
    const gpu = (await openTestGpu()) as WebGpuDevice;
    // Less than a word, some words, less than a workgroup has, and more; then rows that lie apart.
    for (const [at, count, width = count, stride = width] of [
      [0, 3],
      [8, 77],
      [64, 8000],
      [16, 8205],
      [16, 9000, 360, 400],
    ]) {
      const outcomes = gpu.scope(() => {
        const table = gpu.tensor(nf4Table(), [273]);
        const size = at + (count / width) * stride;
        const w = gpu.tensor(new TestRandom(count).normals(size), [size]);
        const [codes, absmax] = gpu.ops.nf4Quantize(w, table);
        const blocks = { blockBits: 6, nestedBits: 8, isDouble: false, zero: 0 };
        const params = { at, count, width, stride, codesAt: 0, ...blocks };
        const consts = { APART: Number(width !== stride) };
        return (["f32", "f16"] as const).map((dtype) => {
          const panel = gpu.tensor(new Float32Array(count + 16).fill(7), [count + 16], { dtype });
          const bind = { codes, table, absmax, scales: null, w: panel };
          gpu.dispatch("nf4-dequantize/main", { bind, params, consts, grid: Math.ceil(count / 8192) });
          return dtype === "f16" ? panel : gpu.ops.cast(panel, { to: "f16" });
        });
      });
      const [want, got] = await Promise.all(outcomes.map((tensor) => tensor.read()));
      expect(got.subarray(0, count)).toEqual(want.subarray(0, count));
      expect([...got.subarray(count + 8)]).toEqual(Array.from({ length: 8 }, () => 7));
      for (const tensor of outcomes) tensor.dispose();
    }
    gpu.dispose();
  });
});

/** A kernel that divides as `file` does, on a driver whose quotients are `off` units in the last place away from its own. */
function quotientKernel(file: "nf4-scales" | "nf4-quantize"): string {
  const body = /fn remainder[\s\S]*?fn quotient[\s\S]*?\n}\n/.exec(kernels[file])?.[0] ?? "";
  expect(body).toContain("bitcast<u32>(s / a)");
  return `requires immediate_address_space;
struct Params { n: u32, off: i32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> s: array<f32>;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
${body.replace("bitcast<u32>(s / a)", "bitcast<u32>(s / a) + bitcast<u32>(p.off)")}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x < p.n) { y[id.x] = quotient(s[id.x], a[id.x]); }
}
`;
}

describe.runIf(gpuAvailable)("quotients of NF4 kernels", () => {
  it.each(["nf4-scales", "nf4-quantize"] as const)(
    "are rounded correctly in %s, however wrong the driver's are",
    async (file) => {
      const gpu = (await openTestGpu()) as WebGpuDevice;
      const random = new Random(3, 0);
      const n = 4096;
      const s = Float32Array.from({ length: n }, () => 2 ** (random.uniform() * 20 - 10));
      // Integers, any numbers, and quotients near a power of two, where the ulp changes.
      const a = s.map((value, i) =>
        i % 3 === 0
          ? 1 + (i % 700)
          : i % 3 === 1
            ? 2 ** (random.uniform() * 20 - 10)
            : value * (1 + (i % 16) * 2 ** -24),
      );
      [s[0], a[0]] = [37.88243103027344, 46]; // times the reciprocal it is one unit too large, as one GPU had it
      const want = s.map((value, i) => value / a[i]);
      gpu.addKernel(`quotient-of-${file}`, quotientKernel(file));
      for (const off of [0, 1, -1, 4, -4]) {
        using out = gpu.tensor(new Float32Array(n), [n]);
        using left = gpu.tensor(s, [n]);
        using right = gpu.tensor(a, [n]);
        const call = { bind: { s: left, a: right, y: out }, params: { n, off }, grid: n / 64 };
        gpu.dispatch(`quotient-of-${file}/main`, call);
        expect([...(await out.read())], `${off} units off`).toEqual([...want]);
      }
      gpu.dispose();
    },
  );
});
