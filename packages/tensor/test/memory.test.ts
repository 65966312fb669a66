import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { CpuDevice, MemoryAccount, MetaDevice, type Tensor } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { messageOf } from "./support.ts";

describe("scopes", () => {
  it("free what they made, but for what they return or keep", () => {
    const device = new CpuDevice();
    const x = device.tensor([1, 2, 3], [3]);
    let kept = x;
    const y = device.scope(() => {
      const inner = device.ops.add(x, x);
      kept = device.keep(device.ops.mul(x, x));
      const [first, second, third] = [inner, x, inner].map((one) => device.ops.add(one, x));
      return { sum: first, rest: [new Map([["a", second]]), new Set([third])] as const };
    });
    const [[second], [third]] = [y.rest[0].values(), y.rest[1]];
    const all = [x, kept, y.sum, second, third];
    expect(device.memory.liveCount).toBe(all.length);
    expect(all.filter(({ disposed }) => disposed)).toEqual([]);
    for (const tensor of all) tensor.dispose();
    expect(device.memory.liveBytes).toBe(0);
  });

  it("find what they return in arrays, sets, maps and plain objects, not in instances of classes", () => {
    const device = new CpuDevice();
    const make = () => device.zeros([1]);
    const bare = (x: Tensor) => Object.assign(Object.create(null), { x });
    class Pair {
      readonly x = make();
    }
    device.scope(() => {
      device.scope(() => [
        [make()],
        new Set([make()]),
        new Map([["x", make()]]),
        { x: make() },
        bare(make()),
      ]);
      expect(device.memory.liveCount).toBe(5);
      expect(device.scope(() => new Pair()).x.disposed).toBe(true);
    });
    expect(device.memory.liveCount).toBe(0);
  });

  it("find what they return in objects that hold each other", () => {
    const device = new CpuDevice();
    interface Node {
      readonly x: Tensor;
      readonly all: Node[];
    }
    const [first, second] = device.scope(() => {
      const all: Node[] = [];
      for (const value of [1, 2]) all.push({ x: device.tensor([value], [1]), all });
      return all;
    });
    expect([first.x.disposed, second.x.disposed]).toEqual([false, false]);
    for (const { x } of first.all) x.dispose();
    expect(device.memory.liveCount).toBe(0);
  });

  it("hand what they return to the scope around them", () => {
    const device = new CpuDevice();
    using x = device.tensor([1], [1]);
    device.scope(() => {
      device.scope(() => device.ops.add(x, x));
      expect(device.memory.liveCount).toBe(2);
    });
    expect(device.memory.liveCount).toBe(1);
  });

  it("free everything when their body throws", () => {
    const device = new CpuDevice();
    using x = device.tensor([1], [1]);
    expect(() =>
      device.scope(() => {
        device.ops.add(x, x);
        throw new Error("the body's");
      }),
    ).toThrow("the body's");
    expect(device.memory.liveCount).toBe(1);
  });

  it("refuse a body that returns a promise", () => {
    const device = new CpuDevice();
    expect(messageOf(() => device.scope(async () => device.tensor([1], [1])))).toContain("[T-SCOPE]");
    expect(device.memory.liveCount).toBe(0);
  });

  it("consume what they are handed, unless it is returned", () => {
    const device = new CpuDevice();
    const x = device.tensor([1], [1]);
    const same = device.scope(() => x, { consume: [x] });
    expect(same.disposed).toBe(false);
    device.scope(() => {}, { consume: [x] });
    expect(x.disposed).toBe(true);
  });

  it("let a read of a freed tensor reject, as any wait does, and free nothing of a body that throws too late", async () => {
    const device = new CpuDevice();
    const x = device.tensor([1], [1]);
    const consumed = device.tensor([2], [1]);
    const failing = () =>
      device.scope(
        () => {
          device.ops.add(x, x);
          throw new Error("later");
        },
        { consume: [consumed] },
      );
    expect(failing).toThrow("later");
    expect([device.memory.liveCount, consumed.disposed]).toEqual([2, false]);
    consumed.dispose();
    x.dispose();
    const reading = x.read(); // does not throw
    await expect(reading).rejects.toThrow(/T-USE-AFTER-FREE.*read/s);
    await expect(x.item()).rejects.toThrow("T-USE-AFTER-FREE");
  });

  it("name who freed a tensor that is used again", () => {
    const device = new CpuDevice();
    using x = device.tensor([1], [1]);
    let leaked = x;
    device.scope(
      () => {
        leaked = device.ops.add(x, x);
      },
      { label: "layer 3" },
    );
    expect(() => device.ops.scale(leaked, { factor: 2 })).toThrow(
      /T-USE-AFTER-FREE.*scale.*made by add.*the end of layer 3/s,
    );
  });
});

it("views and handles share memory until the last is gone", async () => {
  const device = new CpuDevice();
  const x = device.tensor([1, 2, 3, 4], [4]);
  const view = device.ops.reshape(x, { shape: [2, 2] });
  const handle = device.retain(x);
  expect(device.memory.liveCount).toBe(1);
  x.dispose();
  view.dispose();
  expect([...(await handle.read())]).toEqual([1, 2, 3, 4]);
  handle.dispose();
  expect(device.memory.liveCount).toBe(0);
});

it("an account's categories always add up, and its peaks are the largest sums since they were taken", () => {
  const step = fc.record({
    size: fc.nat({ max: 5 }), // few sizes, so that sums come again
    free: fc.nat({ max: 3 }),
    move: fc.boolean(),
    restart: fc.boolean(),
    take: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const account = new MemoryAccount();
      const live: { sizeBytes: number; label: string; category: "weights" | "saved" }[] = [];
      const now = () => {
        const of = (category: string) =>
          live.reduce((sum, a) => sum + (a.category === category ? a.sizeBytes : 0), 0);
        const [weights, saved] = ["weights", "saved"].map(of);
        return { bytes: weights + saved, weights, saved, labels: live.map(({ label }) => label) };
      };
      let peak = now();
      let highest = now();
      for (const [i, { size, free, move, restart, take }] of steps.entries()) {
        const category: "weights" | "saved" = i % 2 ? "weights" : "saved";
        const allocation = { sizeBytes: size, label: `#${i}`, category };
        account.reserve(allocation);
        live.push(allocation);
        if (move) account.recategorize(live[0], live[0].category === "saved" ? "weights" : "saved");
        // Of equal sums the first counts, or the last in which something moves.
        const isAbove = ({ bytes }: { bytes: number }) =>
          now().bytes > bytes || (move && now().bytes === bytes);
        if (isAbove(peak)) peak = now();
        if (isAbove(highest)) highest = now();
        for (let n = 0; n < free && live.length > 0; n++) account.free(live.shift()!);
        const { weights, saved } = account.live;
        expect([weights, saved, account.liveBytes]).toEqual([now().weights, now().saved, now().bytes]);
        if (take) {
          const { bytes, byCategory } = account.takeHighest();
          expect([bytes, byCategory.weights, byCategory.saved]).toEqual([
            highest.bytes,
            highest.weights,
            highest.saved,
          ]);
          highest = now();
        }
        if (restart) {
          account.resetPeak();
          peak = now();
        }
      }
      const { peakBytes, byCategory, largest } = account.peak(1000);
      expect([peakBytes, byCategory.weights, byCategory.saved]).toEqual([
        peak.bytes,
        peak.weights,
        peak.saved,
      ]);
      expect(new Set(largest.map((a) => a.label))).toEqual(new Set(peak.labels));
      const sizes = largest.map((a) => a.sizeBytes);
      expect(sizes).toEqual([...sizes].sort((x, y) => y - x));
      expect(account.peak(2).largest).toEqual(largest.slice(0, 2));
      for (const allocation of [...live, ...live]) account.free(allocation);
      expect([account.liveCount, account.liveBytes]).toEqual([0, 0]);
    }),
  );
});

it("an account keeps no freed memory alive, though it remembers what was live at the peak", async () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const account = new MemoryAccount();
  const reserved = (): WeakRef<object> => {
    const handle = new Float32Array(2 ** 20);
    const allocation = { sizeBytes: handle.byteLength, label: "x", category: "weights" as const, handle };
    account.reserve(allocation);
    account.free(allocation);
    return new WeakRef(handle);
  };
  const memory = reserved();
  await new Promise((resolve) => setTimeout(resolve)); // a WeakRef holds its target until then
  collect();
  expect(memory.deref()).toBeUndefined();
  expect(account.peak().largest).toEqual([{ sizeBytes: 2 ** 22, label: "x", category: "weights" }]);
});

it("a budget refuses the allocation that would pass it, says what is live, and goes on", () => {
  const device = new MetaDevice();
  device.memory.limitBytes = 800;
  expect(() => device.empty([201])).toThrow(/T-OUT-OF-MEMORY.*Live now: 0\.0 MiB \(nothing live\)/);
  using trained = device.empty([100], { category: "adapter", label: "t" });
  {
    using _ = device.empty([10], { category: "weights" });
    expect(() => device.empty([200], { label: "activations" })).toThrow(
      /T-OUT-OF-MEMORY.*activations asked for.*\(adapter 0\.0 MiB, weights 0\.0 MiB\).*smaller batch/s, // the largest first
    );
  }
  expect(device.memory.liveCount).toBe(1);
  using fits = device.empty([100]);
  expect(fits.size + trained.size).toBe(200);
});

describe("mistakes are named", () => {
  const device = new CpuDevice();
  const cases: [string, string, (x: Tensor) => unknown][] = [
    [
      "a shape that does not fit",
      "T-SHAPE",
      (x) => {
        using bias = device.tensor([1, 2, 3], [3]);
        return device.ops.linear(x, x, bias);
      },
    ],
    ["a missing operand", "T-SHAPE", (x) => (device.ops.add as (a: unknown) => unknown)(x)],
    [
      "an integer where a float is due",
      "T-DTYPE",
      (x) => {
        using integer = device.tensor([1], [1], { dtype: "i32" });
        return device.ops.add(x, integer);
      },
    ],
    ["values that do not fill the shape", "T-SHAPE", () => device.tensor([1, 2], [3])],
    ["a negative extent", "T-SHAPE", () => device.empty([-1])],
    [
      "a tensor of another device",
      "T-DEVICE",
      (x) => {
        using elsewhere = new CpuDevice().tensor(new Float32Array(6), [2, 3]);
        return device.ops.add(x, elsewhere);
      },
    ],
    [
      "more elements than kernels can address",
      "T-TOO-LARGE",
      () => device.empty([2 ** 16, 2 ** 15], { dtype: "u8" }),
    ],
    ["more bytes than kernels can address", "T-TOO-LARGE", () => device.empty([2 ** 16, 2 ** 14])],
    ["an axis that is not there", "T-ATTR", (x) => device.ops.sum(x, { axis: 2 })],
    [
      "reading the meta device",
      "T-META",
      () => {
        using shapeOnly = new MetaDevice().empty([1]);
        return shapeOnly.read();
      },
    ],
    ["item() of several elements", "T-SHAPE", (x) => x.item()],
  ];
  it.each(cases)("%s: %s", async (_, code, body) => {
    using x = device.tensor(new Float32Array(6), [2, 3]);
    await expect(async () => body(x)).rejects.toMatchObject({ code });
  });
});
