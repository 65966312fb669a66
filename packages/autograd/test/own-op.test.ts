/** Ops that are not in the table: `defineOp` or `unary` makes the row, `withGradient` adds its gradients, `ops.call` runs it. */
import {
  type AnyOpRow,
  binary,
  CpuDevice,
  checkRow,
  type Device,
  defineOp,
  drawCase,
  MetaDevice,
  type Ops,
  type Tensor,
  TestRandom,
  unary,
} from "@sidenet/tensor";
import { openNodeWasm, openNodeWebGpu } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import { checkpoint, disposeGradients, gradcheck, Tape, unbroadcast, withGradient } from "../src/index.ts";
import { expectCode, expectNoLeaks } from "./support.ts";

/** y = max(x, 0)²: an elementwise op, which the library's own kernel runs. */
const squaredRelu = withGradient(
  unary({
    name: "squaredRelu",
    doc: "y = max(x, 0)²",
    wgsl: "let r = max(x, vec4(0.0)); return r * r;",
    f: (x) => Math.max(x, 0) ** 2,
    flops: 2,
    rel: 2 ** -22,
  }),
  {
    x: {
      saves: ["x"],
      pull: (ops, dy, { x }) => ops.scale(ops.mul(dy, ops.relu(x)), { factor: 2 }),
    },
  },
);

/** y = a + rate · b, which broadcasts. */
const blend = withGradient(
  binary({
    name: "blend",
    doc: "y = a + rate · b",
    attrs: { rate: 1 },
    wgsl: "return a + p.scalar * b;",
    scalars: ({ rate }) => [rate],
    f: (a, b, { rate }) => a + rate * b,
    flops: 2,
    rel: 2 ** -22,
    draw: (pick) => ({ rate: pick.normal() }),
  }),
  {
    a: { saves: [], pull: (ops, dy, _, context) => unbroadcast(ops, dy, context) },
    b: {
      saves: [],
      pull: (ops, dy, _, context) =>
        unbroadcast(ops, dy, context, (wide) => ops.scale(wide, { factor: context.attrs.rate })),
    },
  },
);

const REGLU = `
struct Params { size: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> gate: array<f32>;
@group(0) @binding(1) var<storage, read> up: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let i = (wg.x + wg.y * nwg.x) * 64u + lane;
  if (i < p.size) { y[i] = max(gate[i], 0.0) * up[i]; }
}`;

/** The definition of y = max(gate, 0) · up, with a kernel of its own. */
const regluRow = (name: string, wgsl = REGLU) =>
  defineOp({
    name,
    doc: "y = max(gate, 0) · up",
    sig: "gate:f32[N..] up:f32[N..] -> y:f32[N..]",
    reference({ gate, up, y }) {
      for (let i = 0; i < y.length; i++) y[i] = Math.max(gate[i], 0) * up[i];
    },
    sources: { [name]: wgsl },
    kernel(k, { gate, up, y }) {
      for (const range of k.split(y.size, [gate, up, y])) {
        const rows = (tensor: Tensor) => k.rows(tensor, y.size, range);
        k.run(`${name}/main`, {
          bind: { gate: rows(gate), up: rows(up), y: rows(y) },
          params: { size: range.count },
          grid: Math.ceil(range.count / 64),
        });
      }
    },
    draw: (pick) => ({ dims: { N: pick.shape(3000) }, values: { gate: (n) => pick.awayFromZero(n, 0.1) } }),
    close: { rel: 2 ** -23 },
    flops: ({ N }) => 2 * N,
  });

const reglu = withGradient(regluRow("reglu"), {
  gate: {
    saves: ["gate", "up"],
    pull: (ops, dy, { gate, up }) => ops.mul(dy, ops.where(positive(ops, gate), up)),
  },
  up: { saves: ["gate"], pull: (ops, dy, { gate }) => ops.mul(dy, ops.relu(gate)) },
});

/** 1 where x > 0. */
const positive = (ops: Ops, x: Tensor) => ops.less(x.device.zeros([]), x);

const ENGINES: [string, () => Device | Promise<Device>][] = [
  ["cpu", () => new CpuDevice()],
  ["WebAssembly", () => openNodeWasm({ threads: 1 })],
  ...(process.env.SIDENET_DEVICE === "cpu"
    ? []
    : [["WebGPU", () => openNodeWebGpu({ poison: true })] as [string, () => Promise<Device>]]),
];

describe("an op outside the table", () => {
  it.each(ENGINES)("gives on %s what its reference gives, and leaves nothing behind", async (_, open) => {
    using device = await open();
    for (const row of [squaredRelu, blend, reglu])
      expect(await checkRow(device, row, 20), row.name).toBeNull();
    for (const row of device.profile.f16 ? [squaredRelu, blend] : []) {
      expect(await checkRow(device, row, 20, "f16"), row.name).toBeNull();
    }
    expectNoLeaks(device);
  });

  it("has the gradients of its row, on a tape and in a checkpoint", async () => {
    const allowZero = true; // a small draw may have no positive gate
    for (let seed = 1; seed <= 10; seed++) {
      const unaryCase = drawCase(squaredRelu, new TestRandom(seed, 0.1)).inputs.map((input) => input!);
      const gluCase = drawCase(reglu, new TestRandom(seed, 0.1)).inputs.map((input) => input!);
      await gradcheck((ops, x) => ops.call(squaredRelu, x), unaryCase, { allowZero });
      await gradcheck((ops, a, b) => ops.call(reglu, a, b), gluCase, { allowZero });
      await gradcheck(
        (ops, a, b) => checkpoint(ops, (own, x, y) => own.call(reglu, own.silu(x), y), [a, b]),
        gluCase,
        { allowZero },
      );
    }
  });

  it("sums the gradients of operands that were broadcast, by unbroadcast, in its attributes", async () => {
    const values = Float64Array.from({ length: 12 }, (_, i) => Math.sin(1 + 3 * i));
    const inputs = [[3, 1], [4], [2, 1, 4]].map((shape) => ({
      shape,
      values: values.slice(
        0,
        shape.reduce((a, b) => a * b),
      ),
    }));
    await gradcheck(
      (ops, x, y, z) => ops.call(blend, ops.call(blend, x, y, { rate: -3 }), z, { rate: 0.5 }),
      inputs,
    );
    using device = new MetaDevice();
    device.scope(() => device.ops.call(blend, device.empty([3, 1]), device.empty([4])).size);
    expect(device.flopsByOp.get("blend")).toBe(2 * 12);
  });

  it("is recorded by its name, and saves what its tracked inputs need", () => {
    using device = new MetaDevice();
    using gate = device.empty([5, 7]);
    using up = device.empty([5, 7]);
    using tape = new Tape(device, [up]);
    using y = device.scope(() => tape.sum(tape.call(reglu, gate, up)));
    expect(tape.records[0]).toMatchObject({ op: "reglu", tracked: ["up"], saved: [{ name: "gate" }] });
    expect(device.flopsByOp.get("reglu")).toBe(2 * 35);
    disposeGradients(tape.backward(y));
  });

  it("is refused on a tape where it has no gradients, and runs there where nothing is tracked", () => {
    using device = new CpuDevice();
    using x = device.tensor([1, -2], [2]);
    const plain = regluRow("plainReglu");
    using tape = new Tape(device, [x]);
    expectCode("A-NO-GRADIENT", () => tape.call(plain, x, x), "withGradient");
    using constant = device.tensor([3, 4], [2]);
    tape.call(plain, constant, constant).dispose();
    expect(tape.records).toEqual([]);
  });

  it("cannot have the name of another op, nor gradients with two outputs", () => {
    using device = new CpuDevice();
    using x = device.tensor([1, -2], [2]);
    expectCode("T-OP", () => device.ops.call(regluRow("silu"), x, x), "silu");
    const two = defineOp({
      name: "two",
      doc: "nothing",
      sig: "gate[N..] up[N..] -> y[N..] z[N..]",
      reference() {},
      kernel() {},
      draw: () => ({ dims: { N: [2] } }),
      close: { rel: 0 },
      flops: () => 0,
    });
    const none = { none: "not trained" };
    expectCode("A-RULE", () => withGradient(two, { gate: none, up: none }), "2 outputs");
  });

  it("names op and input where a gradient is no tensor of its input's shape", () => {
    using device = new CpuDevice();
    const none = { none: "a constant of this test" };
    const backward = (pull: (ops: Ops, dy: Tensor) => Tensor) => {
      const wrong = withGradient(regluRow("wrong"), { gate: { saves: [], pull }, up: none });
      device.scope(() => {
        const [gate, up] = [device.tensor([1, -2], [2]), device.tensor([3, 4], [2])];
        using tape = new Tape(device, [gate]);
        tape.backward(tape.sum(tape.call(wrong, gate, up)));
      });
    };
    expectCode("A-RULE", () => backward((ops, dy) => ops.sum(dy)), "wrong made [] for input gate of [2]");
    const wide = (ops: Ops, dy: Tensor) => ops.concat(dy, dy, { axis: 0 });
    expectCode("A-RULE", () => backward(wide), "made [4] for input gate of [2]");
    expectCode("A-RULE", () => backward(wide), "unbroadcast");
    const nothing = (() => {}) as unknown as () => Tensor;
    expectCode("A-RULE", () => backward(nothing), "wrong made undefined for input gate of [2]");
    expectNoLeaks(device);
  });

  it("has an entry for each input, and no names but those of its operands", () => {
    const row: AnyOpRow = regluRow("named");
    const rule = (...saves: string[]) => ({ saves, pull: (_: Ops, dy: Tensor) => dy });
    const both = { gate: rule(), up: rule() };
    expectCode("A-RULE", () => withGradient(row, { gate: rule() }), "named have no entry for up");
    expectCode("A-RULE", () => withGradient(row, { ...both, gat: rule() }), '"gat"');
    expectCode("A-RULE", () => withGradient(row, { ...both, up: rule("y", "x") }), '"x"');
    const joint = (input: string, save: string) =>
      ({ inputs: [input], saves: [save], pull: (_: Ops, dy: Tensor) => [dy] }) as never;
    expectCode("A-RULE", () => withGradient(row, both, joint("down", "y")), '"down"');
    expectCode("A-RULE", () => withGradient(row, both, joint("up", "z")), '"z"');
  });

  it("says why a tracked input has no gradient", () => {
    using device = new CpuDevice();
    const none = { none: "a mask" };
    const row = withGradient(regluRow("masked"), { gate: none, up: { saves: [], pull: (_, dy) => dy } });
    using gate = device.tensor([1, -2], [2]);
    using tape = new Tape(device, [gate]);
    expectCode("A-NO-GRADIENT", () => tape.call(row, gate, gate), "a mask");
  });

  it("names the input that its joint rule leaves out", () => {
    using device = new CpuDevice();
    const rule = { saves: [], pull: (_: Ops, dy: Tensor) => dy };
    const row = regluRow("half");
    const half = withGradient(
      row,
      { gate: rule, up: rule },
      { inputs: ["gate", "up"], saves: [], pull: (_, dy) => [dy] as unknown as [Tensor, Tensor] },
    );
    device.scope(() => {
      const [gate, up] = [device.tensor([1, -2], [2]), device.tensor([3, 4], [2])];
      using tape = new Tape(device, [gate, up]);
      const y = tape.sum(tape.call(half, gate, up));
      expectCode("A-RULE", () => tape.backward(y), "half made undefined for input up of [2]");
    });
    expectNoLeaks(device);
  });

  it("checks operands and attributes as the table's ops do", () => {
    using device = new CpuDevice();
    using x = device.tensor([1, -2], [2]);
    using three = device.tensor([1, 2, 3], [3]);
    expectCode("T-SHAPE", () => device.ops.call(reglu, x, three), "reglu");
    // @ts-expect-error: reglu has no attributes
    expectCode("T-ATTR", () => device.ops.call(reglu, x, x, { factor: 2 }), "factor");
  });

  it.runIf(process.env.SIDENET_DEVICE !== "cpu")(
    "is found to leave an element unwritten, even in memory where an earlier check left the right value",
    async () => {
      using device = await openNodeWebGpu();
      expect(await checkRow(device, regluRow("whole"), 3)).toBeNull();
      const partly = regluRow("partly", REGLU.replace("i < p.size", "i < p.size && i != 3u"));
      expect(await checkRow(device, partly, 3)).toContain("y[3] is 111");
    },
  );

  it.runIf(process.env.SIDENET_DEVICE !== "cpu")("reports WGSL that does not compile", async () => {
    using device = await openNodeWebGpu();
    const broken = regluRow("broken", REGLU.replace("p.size", "p.missing"));
    using x = device.tensor([1, -2], [2]);
    using y = device.ops.call(broken, x, x);
    await expect(y.read()).rejects.toThrow(/T-KERNEL\] broken.wgsl/);
  });
});
