/** Activations and rungs that a tape keeps as smaller copies, what else it keeps, and how gradients are counted. */
import { CpuDevice, type HostArray, type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { checkpoint, Tape, type TapeOptions } from "../src/index.ts";
import { counting, expectCode, expectNoLeaks } from "./support.ts";

const N = 5;
const C = 60;
const BYTES = 4 * N * C;

const square = (ops: Ops, x: Tensor): Tensor => ops.mul(x, x);

/** 1/3, 2/3, ...: float16 holds none of these exactly. */
const thirds = (device: CpuDevice, options = {}): Tensor =>
  device.tensor(
    Array.from({ length: N * C }, (_, i) => (i + 1) / 3),
    [N, C],
    options,
  );

const roundings = {
  f32: ({ ops }: CpuDevice, x: Tensor) => ops.scale(x, { factor: 1 }),
  f16: ({ ops }: CpuDevice, x: Tensor) => ops.cast(ops.cast(x, { to: "f16" }), { to: "f32" }),
  int8: ({ ops }: CpuDevice, x: Tensor) => {
    const [codes, scales] = ops.quantize8(x);
    return ops.reshape(ops.dequantize8(codes, scales), { shape: x.shape });
  },
};
type Format = keyof typeof roundings;
const FORMATS = Object.keys(roundings) as Format[];

/** Bytes of a copy: int8 has a scale for each 256 values. */
const bytesIn: Record<Format, number> = {
  f32: BYTES,
  f16: Math.ceil(BYTES / 2 / 16) * 16,
  int8: Math.ceil(BYTES / 4 / 16) * 16 + 16,
};

/** Gradients of p, whose tape keeps what `loss` makes it keep, beside what is saved before the backward pass. */
async function gradientOf(
  device: CpuDevice,
  options: TapeOptions,
  loss: (tape: Tape, p: Tensor) => Tensor,
): Promise<{ gradient: HostArray; savedBytes: number }> {
  using p = device.zeros([N, C]);
  using tape = new Tape(device, [p], options);
  const root = device.scope(() => loss(tape, p));
  const savedBytes = device.memory.live.saved;
  using gradient = tape.backward(root).get(p)!;
  root.dispose();
  expect(device.memory.live.saved).toBe(0);
  expect(device.memory.live.gradients).toBe(BYTES);
  return { gradient: await gradient.read(), savedBytes };
}

async function rounded(device: CpuDevice, format: Format): Promise<HostArray> {
  using values = device.scope(() => roundings[format](device, thirds(device)));
  return await values.read();
}

describe("a tape keeps", () => {
  it.each(["f32", "f16"] as const)("an activation once, in %s, which gradients come from", async (format) => {
    const device = new CpuDevice();
    const { gradient, savedBytes } = await gradientOf(device, { formats: { saved: format } }, (tape, p) => {
      const x = tape.add(p, thirds(device));
      const flat = tape.reshape(x, { shape: [N * C] });
      return tape.scale(tape.add(tape.sum(square(tape, x)), tape.sum(square(tape, flat))), {
        factor: 0.25,
      });
    });
    expect(gradient).toEqual(await rounded(device, format));
    expect(savedBytes).toBe(bytesIn[format]);
    expectNoLeaks(device);
  });

  it.each(FORMATS)("a rung in %s, and other constants and frozen weights as they are", async (format) => {
    const device = new CpuDevice();
    const formats = { saved: "f16", rungs: format } as const;
    for (const category of ["rungs", "workspace", "weights"] as const) {
      using constant = thirds(device, { category });
      const { gradient } = await gradientOf(device, { formats }, (tape, p) =>
        tape.sum(tape.mul(p, constant)),
      );
      expect(gradient, category).toEqual(await rounded(device, category === "rungs" ? format : "f32"));
    }
    expectNoLeaks(device);
  });

  it("a tensor in f16 as it is", async () => {
    const device = new CpuDevice();
    const { savedBytes, gradient } = await gradientOf(device, { formats: { saved: "f16" } }, (tape, p) => {
      const h = tape.cast(tape.add(p, device.tensor([1], [1])), { to: "f16" });
      return tape.cast(tape.sum(square(tape, h)), { to: "f32" });
    });
    expect(savedBytes).toBe(bytesIn.f16);
    expect(new Set(gradient)).toEqual(new Set([2]));
    expectNoLeaks(device);
  });
});

describe("the backward pass", () => {
  it("counts gradients of trained tensors as gradients, and all others as workspace", () => {
    const most: number[] = [];
    class Watched extends CpuDevice {
      protected override compute(execution: Parameters<CpuDevice["compute"]>[0]): void {
        super.compute(execution);
        most.push(this.memory.live.gradients);
      }
    }
    const device = new Watched();
    device.scope(() => {
      const p = counting(device, [1]);
      using tape = new Tape(device, [p]);
      const h = tape.mul(counting(device, [N, C]), p);
      const loss = tape.sum(square(tape, square(tape, h)));
      tape.backward(loss);
      expect(Math.max(...most), "until the last op has made p's").toBe(0);
      expect(device.memory.live.gradients).toBe(16);
    });
    expectNoLeaks(device);
  });

  it("frees what was saved where it fails, before its tape is disposed", () => {
    class Failing extends CpuDevice {
      fails = false;
      protected override compute(execution: Parameters<CpuDevice["compute"]>[0]): void {
        if (this.fails) throw new SidenetError("TEST-LOST", execution.row.name);
        super.compute(execution);
      }
    }
    const device = new Failing();
    device.scope(() => {
      const p = counting(device, [N, C]);
      using tape = new Tape(device, [p], { formats: { saved: "f16" } });
      const loss = tape.sum(square(tape, square(tape, p)));
      expect(device.memory.live.saved).toBeGreaterThan(0);
      device.fails = true;
      expectCode("TEST-LOST", () => tape.backward(loss));
      expect(device.memory.live.saved).toBe(0);
    });
    expectNoLeaks(device);
  });

  it("leaves gradients that no function can be recorded of", () => {
    const device = new CpuDevice();
    device.scope(() => {
      const p = counting(device, [N, C]);
      using tape = new Tape(device, [p]);
      const gradient = tape.backward(tape.sum(square(tape, p))).get(p)!;
      expectCode("A-SECOND-ORDER", () => checkpoint(tape, (ops, x) => square(ops, x), [gradient]), "input 0");
    });
    expectNoLeaks(device);
  });
});
