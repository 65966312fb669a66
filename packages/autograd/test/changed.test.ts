// Tensors that are changed in place between the forward and the backward pass.
import { CpuDevice, type Device, MetaDevice, ParamStore, type Tensor } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import {
  AdamW,
  type CustomGradient,
  checkpoint,
  customGradient,
  Tape,
  type TapeOptions,
} from "../src/index.ts";
import { counting, expectCode, expectNoLeaks } from "./support.ts";

/** Calls `body` with a tape over up[2,3] and down[2,2], and expects no leak. */
function withNetwork(
  device: Device,
  body: (tape: Tape, up: Tensor, down: Tensor, store: ParamStore) => void,
  options: TapeOptions = {},
): void {
  {
    using store = new ParamStore(device, "adapter");
    const up = store.add("up", counting(device, [2, 3]));
    const down = store.add("down", counting(device, [2, 2]));
    using tape = new Tape(device, store, options);
    device.scope(() => body(tape, up, down, store));
  }
  expectNoLeaks(device);
}

const changes: [string, (device: Device, down: Tensor, store: ParamStore) => void][] = [
  ["assign", (device, down) => device.assign(down, [1, 2, 3, 4])],
  ["accumulate", (device, down) => device.ops.accumulate(down, counting(device, [2, 2]))],
  [
    "an op on a view",
    (device, down) => device.ops.fill(device.ops.reshape(down, { shape: [4] }), { value: 1 }),
  ],
  [
    "an op on another handle",
    (device, down) => {
      using handle = device.retain(down);
      device.ops.fill(handle, { value: 1 });
    },
  ],
  [
    "an optimizer",
    (device, _, store) => {
      using adamw = new AdamW(store);
      const gradients = new Map([...store].map(([, leaf]) => [leaf, device.zeros(leaf.shape)]));
      adamw.step(gradients, { lr: 0 });
    },
  ],
];

describe.each([
  ["cpu", async () => new CpuDevice()],
  ["meta", async () => new MetaDevice()],
  ["wasm", () => openNodeWasm({ threads: 1 })],
] as [string, () => Promise<Device>][])("on %s", (_, open) => {
  it.each(changes)(
    "a leaf that is saved and changed by %s is refused, and named with its op",
    async (_, change) => {
      const device = await open();
      withNetwork(device, (tape, up, down, store) => {
        const loss = tape.sum(tape.linear(tape.linear(counting(device, [4, 3]), up), down));
        change(device, down, store);
        expectCode("A-CHANGED", () => tape.backward(loss), "linear saved its w (down)");
        expectCode("A-TWICE", () => tape.backward(loss));
      });
      device.dispose();
    },
  );
});

describe("a change in place", () => {
  it("of a leaf that a checkpoint's function uses is refused", () => {
    const device = new CpuDevice();
    withNetwork(device, (tape, up, down) => {
      const block = checkpoint(tape, (ops, x) => ops.linear(ops.linear(x, up), down), [
        counting(device, [4, 3]),
      ]);
      const loss = tape.sum(block);
      device.assign(up, [1, 2, 3, 4, 5, 6]);
      expectCode("A-CHANGED", () => tape.backward(loss), "(up)");
    });
  });

  it("of what a custom gradient saves is refused", () => {
    const device = new CpuDevice();
    withNetwork(device, (tape, up) => {
      const constant = counting(device, [2, 3]);
      const rule: CustomGradient = {
        name: "times",
        forward: (ops, x) => ({ y: ops.mul(x, constant), saves: [constant] }),
        pull: (ops, dy, [c]) => [ops.mul(dy, c)],
      };
      const loss = tape.sum(customGradient(tape, rule, [up]));
      device.ops.fill(constant, { value: 0 });
      expectCode("A-CHANGED", () => tape.backward(loss, null, { allowUnused: true }), "custom times");
    });
  });

  it("of a constant that is saved is refused, and so is one between two uses", () => {
    const device = new CpuDevice();
    withNetwork(device, (tape, up) => {
      const mask = counting(device, [2, 3]);
      const first = tape.sum(tape.mul(up, mask));
      device.ops.fill(mask, { value: 0 });
      const loss = tape.add(first, tape.sum(tape.mul(up, mask)));
      expectCode(
        "A-CHANGED",
        () => tape.backward(loss, null, { allowUnused: true }),
        `mul saved its b (${mask})`,
      );
    });
  });

  it("of what no gradient needs is allowed", async () => {
    const device = new CpuDevice();
    const kept: Tensor[] = [];
    using up = counting(device, [2, 3]);
    using tape = new Tape(device, [up]);
    device.scope(() => {
      const loss = tape.sum(tape.add(up, counting(device, [2, 3])));
      device.assign(up, [0, 0, 0, 0, 0, 0]);
      expect(up.version).toBe(1);
      kept.push(device.keep(tape.backward(loss).get(up)!));
    });
    expect(Array.from(await kept[0].read())).toEqual([1, 1, 1, 1, 1, 1]);
    kept[0].dispose();
  });

  it("of what is kept as a copy is harmless, unless the copy has a second use after it", async () => {
    for (const again of [false, true]) {
      const device = new CpuDevice();
      const kept: Tensor[] = [];
      using up = counting(device, [2, 3]);
      using tape = new Tape(device, [up], { formats: { saved: "f16" } });
      device.scope(() => {
        const constant = counting(device, [2, 3]);
        const y = tape.relu(up);
        const product = () => tape.sum(tape.mul(y, y));
        const loss = tape.sum(tape.mul(up, constant));
        const first = tape.add(loss, product());
        device.ops.fill(y, { value: 0 });
        if (again) {
          const both = tape.add(first, product());
          expectCode("A-CHANGED", () => tape.backward(both), "mul saved its a");
        } else kept.push(device.keep(tape.backward(first).get(up)!));
      });
      for (const gradient of kept) {
        expect(Array.from(await gradient.read())).toEqual([3, 6, 9, 12, 15, 18]);
        gradient.dispose();
      }
      expect(kept.length).toBe(again ? 0 : 1);
    }
  });
});
