import { CpuDevice, type Device, MetaDevice, Random, roundToFloat16 } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import fc from "fast-check";
import { expect, it } from "vitest";
import { CHUNKS, tokenChunks } from "../src/ops/lm-head.ts";
import { assertClose, gpuAvailable, openTestGpu, propertyRuns } from "./support.ts";

it("a smoothed loss is the mixture that it says: (1 - s) of the target's and s of the mean over all classes", async () => {
  const [N, V, s] = [3, 7, 0.3];
  const devices: Device[] = [new CpuDevice(), ...(gpuAvailable ? [await openTestGpu()] : [])];
  for (const device of devices) {
    const logits = device.tensor(new Random(2, 0).normals(N * V, 3), [N, V]);
    const loss = async (target: number, labelSmoothing: number): Promise<number> => {
      const ids = [target, -100, (target + 2) % V];
      using targets = device.tensor(ids, [N], { dtype: "i32" });
      using value = device.ops.crossEntropy(logits, targets, { labelSmoothing });
      return value.item();
    };
    const all = await Promise.all(Array.from({ length: V }, (_, v) => loss(v, 0)));
    const mean = all.reduce((a, b) => a + b) / V;
    expect(await loss(4, s)).toBeCloseTo((1 - s) * all[4] + s * mean, 5);
    expect(await loss(4, 1)).toBeCloseTo(mean, 5);
    using targets = device.tensor([0, 1, 2], [N], { dtype: "i32" });
    expect(() => device.ops.crossEntropy(logits, targets, { labelSmoothing: 2 })).toThrow(
      /T-ATTR.*labelSmoothing is 2/,
    );
    logits.dispose();
    device.dispose();
  }
});

const ENGINES: [string, () => Device | Promise<Device>][] = [
  ["the reference", () => new CpuDevice()],
  ["WebAssembly", () => openNodeWasm()],
  ...(gpuAvailable
    ? [
        ["WebGPU", () => openTestGpu()] as [string, () => Promise<Device>],
        ["a GPU's kernels", () => openTestGpu({ adapterClass: "discrete" })] as [
          string,
          () => Promise<Device>,
        ],
      ]
    : []),
];

it.each(ENGINES)(
  "a target that is no class makes the loss and its row's gradient NaN on %s",
  async (_, open) => {
    using device = await open();
    const [N, V, C] = [3, 8, 4];
    for (const target of [V, -1, 2 ** 31 - 1, -(2 ** 31)]) {
      for (const labelSmoothing of [0, 0.1, 1]) {
        const [logits, h, w, before] = device.scope(() =>
          [N * V, N * C, V * C, 64].map((size, i) => device.tensor(new Random(i).normals(size), [size])),
        );
        const made = device.scope(() => {
          const targets = device.tensor([target, -100, 5], [N], { dtype: "i32" });
          const rows = device.ops.reshape(logits, { shape: [N, V] });
          const shaped = [device.ops.reshape(h, { shape: [N, C] }), device.ops.reshape(w, { shape: [V, C] })];
          const direct = device.run("crossEntropy", [rows, targets], { labelSmoothing }, ["max", "logSum"]);
          const { loss, max, logSum } = direct;
          const upstream = device.tensor([1], []);
          const { dlogits } = device.run("crossEntropyBackward", [upstream, rows, targets, max, logSum], {
            labelSmoothing,
          });
          const head = device.run("lmHeadLoss", [...shaped, targets], { labelSmoothing }, ["dh"]);
          return { loss, dlogits, headLoss: head.loss, dh: head.dh };
        });
        expect(await made.loss.item()).toBeNaN();
        expect(await made.headLoss.item()).toBeNaN();
        for (const [gradient, width] of [
          [made.dlogits, V],
          [made.dh, C],
        ] as const) {
          const values = [...(await gradient.read())];
          expect(values.slice(0, width).every(Number.isNaN)).toBe(true);
          expect(values.slice(width).every(Number.isFinite)).toBe(true);
        }
        // Nothing is written beside the gradient.
        expect([...(await before.read())]).toEqual([...new Random(3).normals(64)]);
        expect([...(await logits.read())]).toEqual([...new Random(0).normals(N * V)]);
        for (const tensor of [logits, h, w, before, ...Object.values(made)]) tensor.dispose();
      }
    }
  },
);

it.each(ENGINES)(
  "a loss in which no row is scored is 0, and so are its gradients, on %s",
  async (_, open) => {
    using device = await open();
    const [N, V, C] = [3, 8, 4];
    const made = device.scope(() => {
      const [logits, h, w] = [
        [N, V],
        [N, C],
        [V, C],
      ].map((shape, i) => device.tensor(new Random(i).normals(shape[0] * shape[1]), shape));
      const targets = device.tensor([-100, -100, -100], [N], { dtype: "i32" });
      const upstream = device.tensor([1], []);
      const { loss, max, logSum } = device.run("crossEntropy", [logits, targets], {}, ["max", "logSum"]);
      const { dlogits } = device.run("crossEntropyBackward", [upstream, logits, targets, max, logSum], {});
      const head = device.run("lmHeadLoss", [h, w, targets], {}, ["dh"]);
      const { dw } = device.run("lmHeadLossBackwardW", [upstream, h, w, targets], {});
      return { loss, dlogits, headLoss: head.loss, dh: head.dh, dw };
    });
    for (const tensor of Object.values(made)) {
      expect([...(await tensor.read())].every((value) => value === 0)).toBe(true);
      tensor.dispose();
    }
  },
);

it.each(ENGINES)("a logit of -∞ is a class of probability 0 on %s", async (_, open) => {
  using device = await open();
  using logits = device.tensor([0, Number.NEGATIVE_INFINITY, 1, 2], [1, 4]);
  using targets = device.tensor([0], [1], { dtype: "i32" });
  using loss = device.ops.crossEntropy(logits, targets);
  expect(await loss.item()).toBeCloseTo(Math.log(1 + Math.E + Math.E ** 2), 5);
});

it.each(ENGINES)(
  "dh in f16 is summed in f32 over blocks of the head, and rounded once, on %s",
  async (_, open) => {
    // h = 0 makes all classes as likely: dh = (mean of w's rows - the target's row) / N. The first block of the head cancels the
    // last; between them the blocks add less than half of what a sum in f16 could tell from the first.
    const [N, C, V, block, large] = [130, 4, 16_384, 256, 2 ** 14];
    const values = Array.from(new Random(5).normals(V * C, 0.5), (x, i) => {
      if (i < block * C) return large;
      return i < (V - block) * C ? roundToFloat16(5 + x) : -large;
    });
    const ids = Array.from({ length: N }, (_, n) => block + 97 * n);
    using device = await open();
    const dh = device.scope(() => {
      const w = device.tensor(values, [V, C], { dtype: "f16" });
      const targets = device.tensor(ids, [N], { dtype: "i32" });
      const operands = [device.zeros([N, C], { dtype: "f16" }), w, targets];
      return device.run("lmHeadLoss", operands, { chunkTokens: 128, blockColumns: block }, ["dh"]).dh;
    });
    const mean = (c: number) => values.reduce((sum, x, i) => (i % C === c ? sum + x : sum), 0) / V;
    const means = Array.from({ length: C }, (_, c) => mean(c));
    const largestSum = (large * block) / V / N;
    const summed = 4 * Math.sqrt(V) * 2 ** -24 * largestSum; // V independent roundings of sums up to the first block's
    for (const [i, got] of (await dh.read()).entries()) {
      const want = (means[i % C] - values[ids[Math.floor(i / C)] * C + (i % C)]) / N;
      expect(Math.abs(got - want)).toBeLessThan(2 ** -11 * Math.abs(want) + summed);
    }
    dh.dispose();
  },
);

it.each(ENGINES)(
  "blocks of any number of rows of the head, and any number of tokens, give the same loss and dh on %s",
  async (_, open) => {
    const [C, V] = [64, 1000];
    using device = await open();
    for (const N of [1, 3]) {
      const made = device.scope(() => {
        const [h, w] = [N, V].map((rows) => device.tensor(new Random(rows).normals(rows * C), [rows, C]));
        const targets = device.tensor([5, 999, 0].slice(0, N), [N], { dtype: "i32" });
        return [{ blockColumns: V }, { blockColumns: 301 }].map((attrs) =>
          device.run("lmHeadLoss", [h, w, targets], attrs, ["dh"]),
        );
      });
      const [whole, blocks] = made;
      expect(await blocks.loss.item()).toBeCloseTo(await whole.loss.item(), 4);
      assertClose("dh", await blocks.dh.read(), await whole.dh.read(), { rel: 1e-5, abs: 1e-6 }, null);
      for (const { loss, dh } of made) for (const tensor of [loss, dh]) tensor.dispose();
    }
  },
);

it("counts of the loss over a head that are no counts are refused by name", async () => {
  for (const device of [await openNodeWasm(), ...(gpuAvailable ? [await openTestGpu()] : [])]) {
    using h = device.tensor([1, 2, 3, 4], [2, 2]);
    using targets = device.tensor([0, 1], [2], { dtype: "i32" });
    expect(() => device.ops.lmHeadLoss(h, h, targets, { chunkBytes: -1 })).toThrow(
      /T-ATTR.*chunkBytes is -1/,
    );
    for (const name of ["chunkTokens", "blockColumns"]) {
      for (const count of [-1, 1.5, Number.NaN]) {
        const refused = new RegExp(`T-ATTR.*${name} is ${count}, wanted a whole number >= 0`);
        expect(() => device.ops.lmHeadLoss(h, h, targets, { [name]: count })).toThrow(refused);
      }
    }
    device.dispose();
  }
});

it.each([
  ["discrete", 152_064, {}, 128],
  ["integrated", 152_064, {}, 128],
  ["software", 152_064, {}, 64],
  ["discrete", 32_000, {}, 256],
  ["discrete", 256_000, {}, 64],
  ["discrete", 152_064, { chunkBytes: 2 ** 25 }, 64],
  ["discrete", 152_064, { chunkTokens: 192 }, 192],
] as const)(
  "on a %s adapter a chunk over a head of %i rows, asked for %o, has %i tokens",
  (adapterClass, V, attrs, rows) => {
    const logits: (number | boolean)[] = [];
    const device = new MetaDevice({ adapterClass, subgroups: false }, (kernel, { params }) => {
      if (kernel === "matmul-block/main") logits.push(params.m);
    });
    device.scope(() => {
      const [h, w] = [device.empty([300, 4]), device.empty([V, 4])];
      device.ops.lmHeadLoss(h, w, device.empty([300], { dtype: "i32" }), attrs);
    });
    expect(logits[0]).toBe(rows);
  },
);

it.each([{ subgroupMatrices: true }, {}])(
  "further chunks take no workspace but some numbers a token: %o",
  (profile) => {
    const workspaceOf = (tokens: number): number => {
      const device = new MetaDevice(profile);
      const results = device.scope(() => {
        const [h, w] = [device.empty([tokens, 64]), device.empty([4096, 64], { dtype: "f16" })];
        const targets = device.empty([tokens], { dtype: "i32" });
        const operands = [h, w, targets];
        return Object.values(device.run("lmHeadLoss", operands, { chunkTokens: 128 }, ["dh"]));
      });
      for (const tensor of results) tensor.dispose();
      return device.memory.peak().peakBytes - 4 * (2 * 64 * tokens + tokens); // without h, dh and targets
    };
    expect(workspaceOf(1024) - workspaceOf(256)).toBeLessThanOrEqual(4 * 4 * (1024 - 256));
  },
);

it("a chunk has as many tokens as chunkBytes hold logits of, in whole steps, of which it has at least one", () => {
  const cases = fc.record({
    adapterClass: fc.constantFrom("discrete", "integrated", "software"),
    dtype: fc.constantFrom("f32", "f16"),
    N: fc.integer({ min: 1, max: 3000 }),
    V: fc.integer({ min: 1, max: 300_000 }),
    chunkBytes: fc.integer({ min: 1, max: 2 ** 28 }),
  });
  const property = fc.property(cases, ({ adapterClass, dtype, N, V, chunkBytes }) => {
    using h = new MetaDevice({ adapterClass }).empty([N, 4], { dtype });
    const step = dtype === "f16" ? 128 : 64; // windows of h start at aligned offsets
    const chunks = tokenChunks(h, V, { ...CHUNKS, chunkBytes });
    expect(chunks.reduce((sum, { count }) => sum + count, 0)).toBe(N);
    const most = chunks[0].count;
    if (most > step) expect(4 * V * most).toBeLessThanOrEqual(chunkBytes);
    if (most < N) expect(4 * V * (most + step)).toBeGreaterThan(chunkBytes);
  });
  fc.assert(property, propertyRuns(500));
});
