import { type CpuDevice, type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { gradcheck } from "../src/index.ts";

const x = { name: "x", shape: [2, 3], values: [1, -2, 3, 0.5, 1.5, -1] };
const w = { name: "w", shape: [2, 3], values: [0.1, 0.2, 0.3, -0.4, 0.5, 0.6] };
const square = (ops: Ops, a: Tensor) => ops.mul(a, a);

async function codeOf(promise: Promise<unknown>): Promise<[string, string]> {
  const error = await promise.then(
    () => expect.fail("wanted an error"),
    (reason: unknown) => reason as SidenetError,
  );
  expect(error).toBeInstanceOf(SidenetError);
  return [error.code, error.message];
}

describe("gradcheck", () => {
  it("reports the error of each checked input and the worst of them", async () => {
    const report = await gradcheck((ops, a, b) => ops.silu(ops.linear(a, b)), [x, w]);
    expect(report.inputs.map(({ name }) => name)).toEqual(["x", "w"]);
    expect(report.worst).toBe(Math.max(...report.inputs.map(({ error }) => error)));
    expect(report.worst).toBeLessThan(1e-7);
  });

  it("leaves out integers and constants", async () => {
    const ids = { shape: [2], values: [1, 0], dtype: "i32" as const };
    const report = await gradcheck((ops, i, table) => ops.embedding(i, table), [ids, w]);
    expect(report.inputs.map(({ name }) => name)).toEqual(["w"]);
    const frozen = await gradcheck((ops, a, b) => ops.linear(a, b), [x, { ...w, constant: true }]);
    expect(frozen.inputs.map(({ name }) => name)).toEqual(["x"]);
  });

  it("throws A-GRADCHECK, naming the input, for a wrong gradient", async () => {
    // Ops of another device leave the tape: the second factor counts as a constant, so half the gradient is missing.
    const detached = (ops: Ops, a: Tensor) => ops.mul(a, (a.device as CpuDevice).ops.scale(a, { factor: 1 }));
    const [code, message] = await codeOf(gradcheck(detached, [x]));
    expect(code).toBe("A-GRADCHECK");
    expect(message).toContain("with respect to x");
    expect((await codeOf(gradcheck(square, [x], { tolerance: 0, steps: [0.3] })))[0]).toBe("A-GRADCHECK");
  });

  it("throws A-GRADCHECK where gradient and slope are 0, so that a missing gradient cannot pass, unless that is allowed", async () => {
    const dead = { ...x, values: [-1, -2, -3, -4, -5, -6] };
    const relu = (ops: Ops, a: Tensor, b: Tensor) => ops.mul(ops.relu(a), b);
    const [code, message] = await codeOf(gradcheck(relu, [dead, { ...w, constant: true }]));
    expect(code).toBe("A-GRADCHECK");
    expect(message).toMatch(/with respect to x is 0.*allowZero/);
    const { inputs } = await gradcheck(relu, [x, w]);
    expect(inputs.map(({ isZero }) => isZero)).toEqual([false, false]);
    const sign = await gradcheck((ops, a) => ops.sign(a), [x], { allowZero: true });
    expect(sign.inputs).toEqual([{ name: "x", error: 0, isZero: true }]);
    // A gradient of 0 where the function changes is wrong, whatever is allowed.
    const lost = (ops: Ops, a: Tensor) =>
      ops.add(ops.sign(a), (a.device as CpuDevice).ops.scale(a, { factor: 1 }));
    expect((await codeOf(gradcheck(lost, [x], { allowZero: true })))[1]).toContain("gives a slope of 0");
  });

  it("throws A-GRADCHECK for a function that is not finite, and passes on A-UNUSED", async () => {
    const wild = { ...x, values: [1e200, 1, 1, 1, 1, 1] };
    expect((await codeOf(gradcheck((ops, a) => square(ops, square(ops, a)), [wild])))[0]).toBe("A-GRADCHECK");
    expect((await codeOf(gradcheck((ops, a) => ops.silu(a), [x, w])))[0]).toBe("A-UNUSED");
  });
});
