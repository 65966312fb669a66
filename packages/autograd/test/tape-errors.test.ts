/** One test for each refusal of a tape. */
import { CpuDevice, type Device, MetaDevice, ParamStore, type Tensor } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { type CustomGradient, checkpoint, customGradient, Tape } from "../src/index.ts";
import { counting, expectCode, expectNoLeaks } from "./support.ts";

/** Runs `body` with a leaf x[3] and a tape over it, then looks for leaks. */
function withTape(body: (tape: Tape, x: Tensor, device: Device) => void): void {
  const device = new CpuDevice();
  device.scope(() => {
    const x = counting(device, [3]);
    using tape = new Tape(device, [["layer.x", x]]);
    body(tape, x, device);
  });
  expectNoLeaks(device);
}

describe("a tape refuses, with a code,", () => {
  it("A-LEAF: a leaf that cannot be trained", () => {
    const device = new CpuDevice();
    using ids = device.tensor([1], [1], { dtype: "i32" });
    const freed = counting(device, [1]);
    freed.dispose();
    expectCode("A-LEAF", () => new Tape(device, [["ids", ids]]), "ids cannot be trained: it is i32");
    expectCode("A-LEAF", () => new Tape(device, [freed]), "it was freed");
    using elsewhere = new MetaDevice().empty([1]);
    expectCode("A-LEAF", () => new Tape(device, [elsewhere]), "it is on meta");
    for (const none of [undefined, null, 1]) {
      const leaf = none as unknown as Tensor;
      expectCode("A-LEAF", () => new Tape(device, [["w", leaf]]), `w cannot be trained: it is ${none}`);
      expectCode("A-LEAF", () => new Tape(device, [leaf]), `it is ${none}, not a tensor`);
    }
    using bare = counting(device, [1]);
    for (const none of [bare, undefined, null]) {
      const leaves = none as unknown as Tensor[];
      expectCode("A-LEAF", () => new Tape(device, leaves), `${none} cannot be trained: it is no list`);
    }
    const closed = new ParamStore(device, "adapter");
    closed.dispose();
    expectCode(
      "T-USE-AFTER-FREE",
      () => new Tape(device, closed),
      'a ParamStore of "adapter" tensors that was disposed',
    );
  });

  it("A-FORMAT: an unknown format for saved tensors", () => {
    const device = new CpuDevice();
    const formats = { saved: "int8" as "f16" };
    expectCode(
      "A-FORMAT",
      () => new Tape(device, [], { formats }),
      'formats.saved is "int8", wanted one of f32, f16',
    );
    const rungs = { rungs: "f8" as "f16" };
    expectCode("A-FORMAT", () => new Tape(device, [], { formats: rungs }), "wanted one of f32, f16, int8");
  });

  it("A-UNUSED: a leaf that no gradient reaches, by its name, and works on", () =>
    withTape((_tape, x, device) => {
      using store = new ParamStore(device, "adapter");
      store.add("side.up", counting(device, [3]));
      store.add("side.down", counting(device, [3]));
      using tape = new Tape(device, store);
      const loss = tape.sum(tape.mul(x, store.get("side.up")));
      expectCode("A-UNUSED", () => tape.backward(loss), "no gradient reaches side.down.");
      expect(tape.backward(loss, null, { allowUnused: true }).size).toBe(1);
    }));

  it("A-UNUSED: eight leaves by name and the others by number", () =>
    withTape((_tape, _x, device) => {
      const leaves = Array.from({ length: 12 }, (_, i) => [`p${i}`, counting(device, [1])] as const);
      using tape = new Tape(device, leaves);
      expectCode(
        "A-UNUSED",
        () => tape.backward(tape.sum(leaves[0][1])),
        "p1, p2, p3, p4, p5, p6, p7, p8, and 3 more",
      );
    }));

  it("A-TWICE: a second backward", () =>
    withTape((tape, x) => {
      const loss = tape.sum(tape.mul(x, x));
      tape.backward(loss);
      expectCode("A-TWICE", () => tape.backward(loss));
    }));

  it("A-LOSS-SHAPE: a loss of several elements without an upstream", () =>
    withTape((tape, x) => expectCode("A-LOSS-SHAPE", () => tape.backward(tape.mul(x, x)), "f32 [3]")));

  it("A-UPSTREAM: an upstream of another shape or dtype, or none", () =>
    withTape((tape, x, device) => {
      const y = tape.mul(x, x);
      expectCode("A-UPSTREAM", () => tape.backward(y, counting(device, [2])), "f32 [2]");
      const half = device.tensor([1, 1, 1], [3], { dtype: "f16" });
      expectCode("A-UPSTREAM", () => tape.backward(y, half), "wanted f32 [3]");
      const options = { allowUnused: true } as unknown as Tensor;
      expectCode("A-UPSTREAM", () => tape.backward(y, options), "wanted f32 [3]");
    }));

  it("A-UNTRACKED: a loss that depends on no leaf", () =>
    withTape((tape, _x, device) => {
      expectCode("A-UNTRACKED", () => tape.backward(tape.sum(counting(device, [2]))));
    }));

  it("A-CLOSED: tracked tensors after backward or dispose; untracked ones still work", () =>
    withTape((tape, x, device) => {
      const y = tape.mul(x, x);
      const loss = tape.sum(y);
      tape.backward(loss);
      expectCode("A-CLOSED", () => tape.silu(y), "has run its backward pass");
      tape.dispose();
      tape.dispose();
      expectCode(
        "A-CLOSED",
        () => tape.silu(x),
        "silu was given a tracked tensor, but this tape was disposed",
      );
      expectCode("A-CLOSED", () => tape.backward(loss));
      tape.silu(counting(device, [2]));
    }));

  it("A-IN-PLACE: updates of tracked values, from tracked values, or of what is saved", () =>
    withTape((tape, x, device) => {
      expectCode("A-IN-PLACE", () => tape.fill(x, { value: 0 }), "x is tracked");
      expectCode("A-IN-PLACE", () => tape.accumulate(counting(device, [3]), x));
      const frozen = counting(device, [3]);
      tape.fill(frozen, { value: 2 });
      tape.mul(x, frozen);
      expectCode("A-IN-PLACE", () => tape.fill(frozen, { value: 0 }), "is saved");
    }));

  it("A-SECOND-ORDER: gradients through the tape that made them, and gradients of backward ops", () =>
    withTape((tape, x, device) => {
      const y = tape.mul(x, x);
      expectCode("A-SECOND-ORDER", () => tape.siluMulBackward(y, x, x));
      const gradient = tape.backward(tape.sum(y)).get(x)!;
      expectCode("A-SECOND-ORDER", () => tape.silu(gradient), "use device.ops");
      device.ops.silu(gradient);
      using other = new Tape(device, [["layer.x", x]]);
      other.mul(x, gradient); // to another tape it is a constant
    }));

  it("A-CHECKPOINT and A-CUSTOM: inputs that are no array of tensors", () =>
    withTape((tape, x) => {
      const rule: CustomGradient = { name: "own", forward: (ops, a) => ops.silu(a), pull: (_, dy) => [dy] };
      for (const none of [x, undefined, null]) {
        const inputs = none as unknown as Tensor[];
        const wanted = "wanted an array of tensors";
        expectCode("A-CHECKPOINT", () => checkpoint(tape, (ops, a) => ops.silu(a), inputs), wanted);
        expectCode("A-CUSTOM", () => customGradient(tape, rule, inputs), wanted);
      }
      const inputs = [null as unknown as Tensor, x];
      expectCode("T-VALUE", () => customGradient(tape, rule, inputs), "wanted a tensor");
    }));

  it("A-NO-GRADIENT: an operand that is a table of constants", () =>
    withTape((_tape, _x, device) => {
      const cos = counting(device, [1, 1]);
      using tape = new Tape(device, [["cos", cos]]);
      const rope = () => tape.rope(counting(device, [1, 1, 2]), cos, counting(device, [1, 1]));
      expectCode("A-NO-GRADIENT", rope, "a table of constants");
    }));
});
