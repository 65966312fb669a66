import {
  CpuDevice,
  type Device,
  drawCase,
  MetaDevice,
  Random,
  rowOf,
  TestRandom,
  type WebGpuDevice,
} from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type AttentionCall, runAttention } from "./attention-call.ts";
import { assertClose, gpuAvailable, openTestGpu } from "./support.ts";

/** [B, T, S, H, G, D], queryOffset: one query, tiles and their edges, each MAX_D, D that are multiples of 4 and others. */
const cases: readonly (readonly [readonly number[], number])[] = [
  [[1, 1, 70, 6, 2, 64], 69],
  [[2, 33, 33, 3, 1, 72], 0],
  [[1, 40, 50, 2, 2, 128], 10],
  [[1, 9, 17, 1, 1, 256], 8],
  [[2, 20, 20, 4, 2, 10], 0],
  [[1, 35, 35, 1, 1, 1], 0],
  [[1, 10, 6, 2, 1, 8], -4], // no key is visible to the first queries
  [[1, 4, 9, 2, 1, 8], -4], // nor to few ones
  [[1, 10, 9, 2, 1, 8], 2 ** 31], // every key is visible
  [[1, 10, 9, 6, 1, 8], -(2 ** 31)], // and none
  [[1, 64, 129, 2, 2, 96], 65], // whole tiles of attention-block, and one key
  [[1, 129, 129, 7, 1, 64], 0], // and rows of a key tile that several workgroups share
  [[1, 65, 65, 5, 1, 160], 0],
  [[2, 4, 530, 2, 1, 72], 526], // several ranges of keys of attention-few
];

/** Queries and keys so many times as large. */
const larger = (size: number) => ({ q: () => size, k: () => size });

const reference = new CpuDevice({ precision: "f64" });

async function agrees(devices: readonly Device[], inputs: AttentionCall, rel: number): Promise<void> {
  const want = runAttention(reference, inputs);
  for (const device of devices) {
    const got = runAttention(device, inputs);
    for (const name in want) {
      const what = `${name} of ${inputs.dims} at ${inputs.queryOffset} on ${device.label}`;
      assertClose(what, await got[name].read(), await want[name].read(), { rel, abs: 1e-6 }, null);
    }
    for (const tensor of Object.values(got)) tensor.dispose();
  }
  for (const tensor of Object.values(want)) tensor.dispose();
}

/** Of queries with one visible key each: the weight is 1, whatever q and k are. */
async function passesNothingToScores(device: Device): Promise<void> {
  const sights: readonly AttentionCall[] = [
    { dims: [2, 1, 1, 3, 1, 128], queryOffset: 0 },
    { dims: [2, 9, 9, 3, 1, 128], queryOffset: -8 },
    { dims: [1, 5, 5, 2, 2, 16], queryOffset: -4, by: larger(14) },
    { dims: [1, 20, 20, 4, 2, 10], queryOffset: 0, keyMask: (_, s) => Number(s === 3) },
    { dims: [1, 37, 37, 2, 1, 40], queryOffset: 0, segments: (_, s) => s },
  ];
  for (const sight of sights) {
    const { dq, dk, ...rest } = runAttention(device, sight);
    for (const gradient of [dq, dk])
      expect(Array.from(await gradient.read()).every((x) => x === 0)).toBe(true);
    for (const tensor of [dq, dk, ...Object.values(rest)]) tensor.dispose();
  }
}

describe("attention in WebAssembly and on the CPU", () => {
  it.each([
    ["wasm", () => openNodeWasm()],
    ["cpu", async () => new CpuDevice()],
  ] as const)("a query with a single visible key has no gradient for q and k: %s", async (_, open) => {
    const device: Device = await open();
    await passesNothingToScores(device);
    device.dispose();
  });
});

/** Past the rows of a window; with so much to stream that tasks of keys, or of queries, have several panels. */
const longCases: readonly (readonly [readonly number[], number])[] = [
  [[2, 370, 370, 2, 2, 10], 0],
  [[1, 400, 400, 2, 1, 64], 0],
  [[1, 21, 800, 2, 1, 130], 779],
  [[1, 400, 10, 9, 3, 33], -5],
  [[2, 1, 800, 4, 2, 130], 799], // so few queries that nothing is packed
  [[1, 3, 725, 1, 1, 33], 721],
];

describe("attention in WebAssembly, fused multiply-add or not", () => {
  let devices: Device[];
  beforeAll(async () => {
    const open = (relaxedSimd: boolean) => openNodeWasm({ threads: 2, relaxedSimd, poison: true });
    devices = await Promise.all([true, false].map(open));
  });
  afterAll(() => {
    for (const device of devices) device.dispose();
  });

  it("agrees with its reference at every kind of size", async () => {
    for (const [dims, queryOffset] of cases) await agrees(devices, { dims, queryOffset }, 2e-5);
    await agrees(devices, { dims: [1, 24, 24, 2, 1, 64], queryOffset: 0, by: larger(32) }, 5e-3); // scores of thousands
  });

  it.each(longCases)(
    "agrees with its reference over windows and panels: %s at %i",
    async (dims, queryOffset) => {
      const keyMask = (b: number, s: number) => Number((s + b) % 5 > 0 && s !== 361);
      const segments = (b: number, s: number) => Math.floor((s + 5 * b) / 150) - 1;
      await agrees(devices, { dims, queryOffset, by: larger(2) }, 1e-4);
      await agrees(devices, { dims, queryOffset, keyMask, ...(queryOffset >= 0 && { segments }) }, 4e-5);
    },
  );
});

describe.runIf(gpuAvailable).each([
  ["as the adapter is", {}],
  ["as on a GPU", { adapterClass: "discrete" as const }],
])("attention, %s", (_, options) => {
  let gpu: Device;
  beforeAll(async () => {
    gpu = await openTestGpu(options);
  });
  afterAll(() => gpu?.dispose());

  // One test each: a software driver compiles the kernels for one MAX_D for half a minute.
  it.each(cases)("agrees with its reference at every kind of size: %j at %i", async (dims, queryOffset) => {
    await agrees([gpu], { dims, queryOffset }, 2e-5);
  });

  it("masks padding on either side; a query without visible keys gives 0 and has no gradient", async () => {
    for (const keyMask of [
      (_b: number, s: number) => 2 * Number(s > 6), // any number but 0 shows a key
      (b: number, s: number) => Number(s < 20 + b),
      () => 0,
    ]) {
      await agrees([gpu], { dims: [2, 37, 37, 2, 1, 16], queryOffset: 0, keyMask }, 2e-5);
    }
  });

  it("joins ranges of keys of which some queries see nothing", async () => {
    const keyMask = (b: number, s: number) => Number(b === 0 ? s < 200 || s > 520 : s > 256);
    const segments = (_: number, s: number) => Number(s >= 259) - 1;
    const shape = { dims: [2, 4, 530, 2, 1, 16] };
    for (const queryOffset of [253, 526]) {
      // 253: the last query alone sees one key of the second range
      await agrees([gpu], { ...shape, queryOffset }, 2e-5);
      await agrees([gpu], { ...shape, queryOffset, keyMask }, 2e-5);
      await agrees([gpu], { ...shape, queryOffset, keyMask, segments }, 2e-5);
    }
  });

  it("a query with a single visible key has no gradient for q and k", () => passesNothingToScores(gpu));

  it.each([10, 16, 72, 258])(
    "hides other segments beside padding, with a cache and without, from heads of %i",
    async (D) => {
      const segments = (b: number, s: number) => Math.floor((s + 5 * b) / 17) - 1;
      const keyMask = (b: number, s: number) => Number((s + b) % 5 > 0);
      await agrees([gpu], { dims: [2, 50, 50, 4, 2, D], queryOffset: 0, segments }, 2e-5);
      await agrees([gpu], { dims: [2, 37, 60, 2, 2, D], queryOffset: 23, segments, keyMask }, 2e-5);
      await agrees([gpu], { dims: [2, 1, 60, 6, 2, D], queryOffset: 59, segments, keyMask }, 2e-5);
      // Of a tile, one query sees one key.
      const sparse = (_: number, s: number) => (s % 64 === 0 ? -1 : Math.floor(s / 32));
      await agrees([gpu], { dims: [1, 96, 96, 1, 1, D], queryOffset: 0, segments: sparse }, 2e-5);
    },
  );

  it("stays finite and exact with scores of thousands", async () => {
    // Deviation 32 in both: scores of ±8,000, which only differences bring back into the range of exp.
    // One ulp of such a score changes a weight by 5e-4.
    await agrees([gpu], { dims: [1, 24, 24, 2, 1, 64], queryOffset: 0, by: larger(32) }, 5e-3);
  });

  it("separates packed sequences: each gives the same as alone", async () => {
    const lengths = [1, 33, 70, 20]; // short, past a tile, past two
    const ends = lengths.map((_, i) => lengths.slice(0, i + 1).reduce((a, b) => a + b));
    const [T, H, D] = [ends.at(-1)!, 2, 16];
    const normals = (stream: number) => new Random(3, stream).normals(T * H * D);
    const attend = (from: number, to: number, ids: readonly number[] | null) => {
      const heads = (stream: number) =>
        gpu.tensor(normals(stream).slice(from * H * D, to * H * D), [1, to - from, H, D]);
      return gpu.scope(() => {
        const segments = ids && gpu.tensor(ids, [1, to - from], { dtype: "i32" });
        return gpu.ops.attention(heads(0), heads(1), heads(2), null, segments);
      });
    };
    const ids = Array.from({ length: T }, (_, t) => -7 * ends.findIndex((end) => t < end));
    using packed = attend(0, T, ids);
    const whole = await packed.read();
    for (const [i, end] of ends.entries()) {
      const start = end - lengths[i];
      using alone = attend(start, end, null);
      assertClose(
        `sequence ${i}`,
        whole.slice(start * H * D, end * H * D),
        await alone.read(),
        { rel: 1e-5, abs: 1e-6 },
        null,
      );
    }
  });

  it("refuses segments that do not mark the queries", () => {
    gpu.scope(() => {
      const [q, k] = [gpu.zeros([1, 3, 1, 4]), gpu.zeros([1, 5, 1, 4])];
      const segments = gpu.tensor([0, 0, 0, 0, 0], [1, 5], { dtype: "i32" });
      for (const queryOffset of [-1, 3]) {
        expect(() => gpu.ops.attention(q, k, k, null, segments, { queryOffset })).toThrow(
          /T-SHAPE.*segments.*queryOffset/,
        );
      }
      gpu.ops.attention(q, k, k, null, segments, { queryOffset: 2 });
    });
  });

  it("goes through bindings in windows of queries, and refuses a sequence of keys that none holds", async () => {
    const narrow = (await openTestGpu({ ...options, maxBindingBytes: 20480 })) as WebGpuDevice;
    narrow.profile = { ...narrow.profile, maxWorkgroupsPerAxis: 3 }; // grids are folded, and have workgroups past the end
    const segments = (b: number, s: number) => Math.floor((s + 5 * b) / 17);
    const keyMask = (b: number, s: number) => Number((s + b) % 5 > 0);
    try {
      await agrees([narrow], { dims: [2, 70, 70, 2, 1, 64], queryOffset: 0 }, 2e-5);
      await agrees([narrow], { dims: [2, 50, 70, 2, 1, 64], queryOffset: 20, segments, keyMask }, 2e-5);
      await agrees([narrow], { dims: [3, 2, 70, 2, 1, 64], queryOffset: 68, segments, keyMask }, 2e-5);
      await agrees([narrow], { dims: [2, 32, 16, 1, 1, 260], queryOffset: 0, keyMask }, 2e-5);
      for (const device of [narrow, new MetaDevice(narrow.profile)]) {
        expect(() => runAttention(device, { dims: [1, 8, 90, 2, 1, 64], queryOffset: 82 })).toThrow(
          /T-TOO-LARGE.*attention/,
        );
      }
      expect(narrow.memory.liveCount).toBe(0);
    } finally {
      narrow.dispose();
    }
  });

  it("agrees with its reference on random cases", async () => {
    for (let seed = 1; seed <= 60; seed++) {
      const { inputs, attrs } = drawCase(rowOf("attention"), new TestRandom(seed));
      const call = (device: Device) =>
        device.scope(() => {
          const tensors = inputs.map(
            (input) => input && device.tensor(input.values, input.shape, { dtype: input.dtype }),
          );
          return device.run("attention", tensors, attrs, ["lse"]);
        });
      const [got, want] = [call(gpu), call(reference)];
      for (const name in want) {
        const what = `${name}, seed ${seed}`;
        assertClose(what, await got[name].read(), await want[name].read(), { rel: 4e-5, abs: 1e-6 }, null);
        for (const tensor of [got[name], want[name]]) tensor.dispose();
      }
    }
  });

  it("leaves no memory behind", () => expect(gpu.memory.liveCount).toBe(0));
});

describe("bindings smaller than a batch", () => {
  it("hold the copy of one sequence of attention at a time, however many there are", () => {
    const workspaceOf = (B: number): number => {
      const device = new MetaDevice({ maxBindingBytes: 2048 });
      device.scope(() => {
        const [q, k, v] = [12, 3, 3].map((heads) => device.empty([B, 33, heads, 8], { dtype: "f16" }));
        device.ops.attention(q, k, v);
      });
      return device.memory.peakBytes;
    };
    // What grows: q, k, v and y in f16, and lse.
    const outputs = (B: number) => B * 33 * (2 * (12 + 3 + 3 + 12) * 8 + 4 * 12 * 2);
    expect(workspaceOf(16) - outputs(16)).toBeLessThan(workspaceOf(4) - outputs(4) + 2048);
  });

  it("are refused by a plan where they do not hold the angles of rope", () => {
    const device = new MetaDevice({ maxBindingBytes: 8192 });
    using x = device.empty([1, 256, 1, 64]);
    using angles = device.empty([256, 32]);
    expect(() => device.ops.rope(x, angles, angles)).toThrow(/T-TOO-LARGE.*rope/);
  });
});
