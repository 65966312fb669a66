/** `Device.repeat`: commands of a body that are issued again give what the body would have given. */
import { type Device, MetaDevice, SidenetError, type Tensor } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { check, input, matrix, N, OWNER, readAndFree, repeat, square } from "./repeat-call.ts";
import { gpuAvailable, propertyRuns } from "./support.ts";

interface Step {
  readonly op: "add" | "mul" | "linear" | "scale" | "constant" | "nested";
  readonly a: number;
  readonly b: number;
}

const steps = fc.array(
  fc.record<Step>({
    op: fc.constantFrom("add", "mul", "linear", "scale", "constant", "nested"),
    a: fc.nat(),
    b: fc.nat(),
  }),
  { minLength: 1, maxLength: 12 },
);

/** A body of these steps, each over earlier results, an input and a weight. It counts its runs. */
function makeBody(device: Device, weight: Tensor, program: readonly Step[], isFreedEarly: boolean) {
  const { ops } = device;
  const counter = { runs: 0 };
  const body = (input: Tensor) => {
    counter.runs++;
    const values = [ops.scale(input, { factor: 0.5 })];
    if (isFreedEarly) input.dispose();
    else values.push(input);
    for (const { op, a, b } of program) {
      const [x, y] = [values[a % values.length], values[b % values.length]];
      if (op === "add" || op === "mul") values.push(ops[op](x, y));
      else if (op === "linear") values.push(ops.linear(x, weight));
      else if (op === "scale") values.push(ops.scale(x, { factor: 1 + (b % 3) }));
      else if (op === "constant") values.push(ops.add(x, device.tensor(matrix(b % 5), [N, N])));
      else values.push(device.scope(() => ops.mul(ops.add(x, y), ops.scale(y, { factor: 0.25 }))));
    }
    const last = values.slice(-2);
    return new Map(last.filter((tensor) => tensor !== input).map((tensor, i) => [i, tensor]));
  };
  return { body, counter };
}

it("repeat runs the body each time on devices without commands, and consumes the inputs", () => {
  using device = new MetaDevice();
  let runs = 0;
  for (let i = 0; i < 4; i++) {
    const x = input(device, i);
    const outputs = repeat(device, "key", x, (tensor) => {
      runs++;
      return square(device)(tensor);
    });
    expect([outputs.get("y")!.shape, x.disposed]).toEqual([[N, N], true]);
    outputs.get("y")!.dispose();
  }
  expect([runs, device.memory.liveBytes]).toEqual([4, 0]);
});

describe.skipIf(!gpuAvailable)("repeat on a GPU", () => {
  const opened: Device[] = [];
  const forms = {
    "a software driver's kernels": {},
    "a GPU's kernels": { adapterClass: "discrete" },
    "no immediates": { immediates: false },
  } as const;
  let device: Device;
  beforeAll(async () => {
    for (const options of Object.values(forms)) opened.push(await openNodeWebGpu(options));
    device = opened[0];
  });
  afterAll(() => {
    for (const one of opened) one.dispose();
  });

  it.each(Object.keys(forms))("gives what any body gives, with %s", async (name) => {
    const own = opened[Object.keys(forms).indexOf(name)];
    await fc.assert(
      fc.asyncProperty(steps, fc.boolean(), fc.nat(), async (program, isFreedEarly, seed) => {
        const weight = own.tensor(matrix(seed), [N, N]);
        const live = own.memory.liveBytes;
        const { body, counter } = makeBody(own, weight, program, isFreedEarly);
        const key = JSON.stringify([program, isFreedEarly, seed]);
        const consume = (x: Tensor) => ({ consume: isFreedEarly ? [] : [x] });
        for (let i = 0; i < 5; i++) {
          const x = input(own, i);
          const flops = own.flops;
          const call = { owner: OWNER, key, inputs: [x] };
          const again = await readAndFree(own.repeat(call, () => body(x), consume(x)));
          const used = own.flops - flops;
          const y = input(own, i);
          const plain = makeBody(own, weight, program, isFreedEarly).body;
          expect(again).toEqual(await readAndFree(own.scope(() => plain(y), consume(y))));
          expect([x.disposed, y.disposed]).toEqual([true, true]);
          expect(own.flops - flops).toBe(2 * used);
          expect(own.memory.liveBytes).toBe(live);
        }
        expect(counter.runs).toBe(3);
        weight.dispose();
      }),
      propertyRuns(20),
    );
  });

  it("runs a body whose commands change, such as one with a random stream", async () => {
    let factor = 0;
    let runs = 0;
    const body = (x: Tensor) => {
      runs++;
      return new Map([["y", device.ops.scale(x, { factor })]]);
    };
    for (; factor < 6; factor++) await check(device, "changing", [factor], body);
    expect(runs).toBe(12);
    const longer = (x: Tensor) => {
      let y = device.ops.add(x, x);
      for (let i = 0; i < factor; i++) y = device.ops.mul(y, x);
      return new Map([["y", y]]);
    };
    for (factor = 0; factor < 6; factor++) await check(device, "longer", [factor], longer);
    const other = (x: Tensor) => new Map([["y", device.ops[factor % 2 ? "mul" : "add"](x, x)]]);
    for (factor = 0; factor < 6; factor++) await check(device, "another op", [factor], other);
    const values = new Float32Array(N * N);
    const upload = (x: Tensor) => new Map([["y", device.ops.add(x, device.tensor(values, [N, N]))]]);
    for (factor = 0; factor < 6; factor++) {
      values.fill(factor);
      await check(device, "values", [factor], upload);
    }
  });

  it("runs the body again after a tensor that it uses was replaced", async () => {
    for (const seed of [1, 2]) {
      using weight = device.tensor(matrix(seed), [N, N]);
      await check(device, "replaced", [1, 2, 3, 4, 5], (x) => new Map([["y", device.ops.linear(x, weight)]]));
    }
  });

  it("never reads what lies where such a tensor lay", async () => {
    const weights = [input(device, 1), input(device, 2)];
    const body = (x: Tensor) => new Map([["y", device.ops.linear(x, weights[0])]]);
    await check(device, "moved", [1, 2, 3, 4], body);
    weights.shift()?.dispose();
    using _other = input(device, 3);
    await check(device, "moved", [5], body);
    weights[0].dispose();
  });

  it("sees changes of a tensor that lives on", async () => {
    using weight = device.tensor(matrix(1), [N, N]);
    for (let i = 0; i < 6; i++) {
      device.assign(weight, matrix(i));
      await check(device, "assigned", [i], (x) => new Map([["y", device.ops.linear(x, weight)]]));
    }
  });

  it("never leaves out a body that changes a tensor in place, keeps one, or returns one twice or that it did not make", async () => {
    using total = device.zeros([N, N]);
    const kept: Tensor[] = [];
    const bodies = {
      changes: (x: Tensor) => {
        device.ops.accumulate(total, x);
        return square(device)(x);
      },
      keeps: (x: Tensor) => {
        kept.push(device.keep(device.ops.add(x, x)));
        return square(device)(x);
      },
      assigns: (x: Tensor) => {
        device.assign(total, matrix(3));
        return square(device)(x);
      },
      aliases: (x: Tensor) => {
        const y = device.ops.mul(x, x);
        return new Map([
          ["y", y],
          ["z", device.ops.reshape(y, { shape: [N * N] })],
        ]);
      },
      "changes its input": (x: Tensor) => {
        device.ops.accumulate(x, total);
        return square(device)(x);
      },
      "keeps its input": (x: Tensor) => {
        kept.push(device.retain(x));
        return square(device)(x);
      },
      "returns one under two names": (x: Tensor) => {
        const y = device.ops.mul(x, x);
        return new Map([
          ["y", y],
          ["z", y],
        ]);
      },
      "returns a live one": () => new Map([["y", device.retain(total)]]),
    };
    for (const [name, body] of Object.entries(bodies)) {
      let runs = 0;
      for (let i = 0; i < 6; i++) {
        const x = input(device, i);
        const outputs = repeat(device, name, x, (tensor) => {
          runs++;
          return body(tensor);
        });
        for (const tensor of [...outputs.values(), ...kept]) tensor.dispose();
      }
      expect([name, runs]).toEqual([name, 6]);
    }
    expect(kept.length).toBe(12);
  });

  it("never takes the memory of a tensor that a body returns and did not make", async () => {
    using total = input(device, 1);
    for (let i = 0; i < 6; i++) {
      const outputs = repeat(device, "returned", input(device, i), () => new Map([["y", total]]));
      expect([outputs.get("y"), await total.read()]).toEqual([total, matrix(1)]);
    }
  });

  it("runs the body where its memory is in use, or its input lies elsewhere", async () => {
    await check(device, "in use", [1, 2, 3, 4], square(device));
    const held = Array.from({ length: 4 }, (_, i) => input(device, i));
    await check(device, "in use", [5, 6, 7, 8, 9], square(device));
    const before = await Promise.all(held.map((tensor) => tensor.read()));
    expect(before).toEqual(held.map((_, i) => matrix(i)));
    for (const tensor of held) tensor.dispose();
    await check(device, "in use", [10, 11, 12, 13, 14], square(device));
  });

  it("runs the body where memory that it had in between is in use", async () => {
    const body = (x: Tensor) => new Map([["y", device.ops.mul(device.ops.add(x, x), device.ops.add(x, x))]]);
    await check(device, "in between", [1, 2, 3, 4], body);
    for (let count = 1; count < 4; count++) {
      const x = input(device, 7);
      const held = Array.from({ length: count }, (_, i) => input(device, i));
      const [y] = await readAndFree(repeat(device, "in between", x, body));
      expect(y).toEqual([...matrix(7).map((one) => 4 * one * one)]);
      for (const [i, tensor] of held.entries()) {
        expect(await tensor.read()).toEqual(matrix(i));
        tensor.dispose();
      }
    }
  });

  it("runs the body for another number of inputs", async () => {
    const sum = (tensors: readonly Tensor[]) =>
      new Map([["y", tensors.reduce((a, b) => device.ops.add(a, b))]]);
    for (let i = 0; i < 8; i++) {
      const inputs = Array.from({ length: i < 5 ? 3 : 2 }, (_, k) => input(device, i + k));
      const body = () => sum(inputs);
      const again = device.repeat({ owner: OWNER, key: "number", inputs }, body);
      expect(await readAndFree(again)).toEqual(await readAndFree(device.scope(body)));
      for (const tensor of inputs) tensor.dispose();
    }
  });

  it("runs the body for an input of another shape", () => {
    for (let i = 0; i < 8; i++) {
      const shape = i < 5 ? [N, N] : [N * N];
      const y = repeat(device, "shape", device.tensor(matrix(i), shape), square(device)).get("y")!;
      expect(y.shape).toEqual(shape);
      y.dispose();
    }
  });

  it("keeps what owners have recorded apart", async () => {
    const owners = [1, 2].map((seed) => ({ weight: input(device, seed) }));
    for (let i = 0; i < 6; i++) {
      for (const owner of owners) {
        const [x, y] = [input(device, i), input(device, i)];
        const body = (tensor: Tensor) => new Map([["y", device.ops.linear(tensor, owner.weight)]]);
        const again = await readAndFree(repeat(device, "key", x, body, owner));
        expect(again).toEqual(await readAndFree(device.scope(() => body(y), { consume: [y] })));
      }
    }
    for (const { weight } of owners) weight.dispose();
  });

  it("leaves the memory of an input to its other users", async () => {
    const early = (x: Tensor) => {
      const y = device.ops.scale(x, { factor: 3 });
      x.dispose();
      return square(device)(y);
    };
    await check(device, "shared input", [1, 2, 3, 4], early);
    const x = input(device, 5);
    using other = device.retain(x);
    const outputs = repeat(device, "shared input", x, early);
    expect(await other.read()).toEqual(matrix(5));
    for (const tensor of outputs.values()) tensor.dispose();
  });

  it("leaves inputs that it does not consume to the caller", async () => {
    for (let i = 0; i < 6; i++) {
      using x = input(device, i);
      const call = { owner: OWNER, key: "kept input", inputs: [x] };
      const [y] = await readAndFree(device.repeat(call, () => square(device)(x)));
      expect(y).toEqual([...matrix(i).map((one) => one * one)]);
      expect(await x.read()).toEqual(matrix(i));
    }
  });

  it("has the peak of the body", () => {
    const body = (x: Tensor) => new Map([["y", device.ops.mul(device.ops.add(x, x), device.ops.add(x, x))]]);
    const peaks = Array.from({ length: 6 }, (_, i) => {
      device.memory.resetPeak();
      const x = input(device, i);
      const { peakBytes } = device.memory;
      repeat(device, "peak", x, body).get("y")!.dispose();
      return [peakBytes, device.memory.peak().peakBytes];
    });
    const bytes = 4 * N * N;
    expect(new Set(peaks.map(([before, peak]) => peak - before))).toEqual(new Set([3 * bytes]));
  });

  it("keeps to the limit of memory", () => {
    const { memory } = device;
    for (let i = 0; i < 6; i++) {
      const x = input(device, i);
      repeat(device, "limit", x, square(device)).get("y")!.dispose();
    }
    using x = input(device, 1);
    memory.limitBytes = memory.liveBytes;
    const call = () => repeat(device, "limit", x, square(device));
    expect(call).toThrow(SidenetError);
    memory.limitBytes = Number.POSITIVE_INFINITY;
    expect(x.disposed).toBe(false);
  });

  it("leaves nothing behind after a body that throws, and goes on", async () => {
    const live = device.memory.liveBytes;
    for (let i = 0; i < 6; i++) {
      using x = input(device, i);
      const failing = () => {
        device.ops.add(x, x);
        throw new Error("not today");
      };
      expect(() => repeat(device, "throws", x, failing)).toThrow("not today");
    }
    expect(device.memory.liveBytes).toBe(live);
    await check(device, "throws", [1, 2, 3, 4, 5], square(device));
  });

  it("runs the body while each op is watched", async () => {
    const body = (x: Tensor) => new Map([["y", device.ops.mul(device.ops.add(x, x), x)]]);
    await check(device, "watched", [1, 2, 3, 4], body);
    const names: string[] = [];
    device.onOp = (name) => names.push(name);
    await check(device, "watched", [5], body);
    device.onOp = null;
    expect(names).toEqual(["add", "mul", "add", "mul"]);
    const reserved: string[] = [];
    device.memory.onReserve = ({ label }) => reserved.push(label);
    await check(device, "watched", [6], body);
    device.memory.onReserve = null;
    expect(reserved.filter((label) => label === "add").length).toBe(2);
    let runs = 0;
    device.detectAnomaly = true;
    await check(device, "watched", [7], (x) => {
      runs++;
      return square(device)(x);
    });
    device.detectAnomaly = false;
    expect(runs).toBe(2);
  });

  it("may be called within a body, whose commands then include it", async () => {
    let runs = 0;
    const body = (x: Tensor) => {
      runs++;
      const y = repeat(device, "inner", device.ops.add(x, x), square(device)).get("y")!;
      return new Map([["z", device.ops.add(y, y)]]);
    };
    await check(device, "outer", [1, 2, 3, 4, 5, 6], body);
    expect(runs).toBe(3 + 6);
  });

  it("refuses an input that was freed, or of another device", () => {
    const x = input(device, 1);
    x.dispose();
    expect(() => repeat(device, "freed", x, square(device))).toThrow("T-USE-AFTER-FREE");
    using other = input(opened[1], 1);
    expect(() => repeat(device, "other", other, square(device))).toThrow("T-DEVICE");
  });
});
