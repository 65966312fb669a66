/** Signatures of ops of one's own: mistakes in them are named where the op is defined. */
import { CpuDevice, defineOp, type OpRow } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { messageOf } from "./support.ts";

/** A row that computes nothing. */
const rowOf = (sig: string, more: object = {}): OpRow =>
  defineOp({
    name: "own",
    doc: "nothing",
    sig,
    reference() {},
    kernel() {},
    draw: () => ({ dims: {} }),
    close: { rel: 0 },
    flops: () => 0,
    ...more,
  });

describe("a signature is refused", () => {
  it.each([
    ["x[N] => y[N]", "T-SIGNATURE", 'cannot read "=>"'],
    ["x [N] -> y[N]", "T-SIGNATURE", 'cannot read "x"'],
    ["x[N]", "T-SIGNATURE", "there is no ->"],
    ["x[N] x[N] -> y[N]", "T-SIGNATURE", "two operands are named x"],
    ["x[N] -> y[N] | x[N]", "T-SIGNATURE", "two operands are named x"],
    ["x[N..,M..] -> y[N..]", "T-SIGNATURE", "x has more than one run of axes"],
    ["x[N] -> y[K]", "T-SIGNATURE", "no input gives K of y"],
    ["x[N,2] -> y[N]", "T-SIGNATURE", '"2" of "x[N,2]"'],
    ["x[N,] -> y[N]", "T-SIGNATURE", '"" of "x[N,]"'],
    ["x[..] -> y[N]", "T-SIGNATURE", '".." of "x[..]"'],
    ["x:f64[N] -> y[N]", "T-DTYPE", 'there is no dtype "f64"'],
  ])("%s: %s, %s", (sig, code, problem) => {
    const message = messageOf(() => rowOf(sig));
    expect(message).toContain(`[${code}]`);
    expect(message).toContain(problem);
  });
});

it("a signature with an infer function may leave extents to it", () => {
  const row = rowOf("x[N] -> y[K]", { infer: () => ({ outputs: [{ shape: [3], dtype: "f32" }] }) });
  using device = new CpuDevice();
  const outputs = device.scope(() => device.run(row, [device.zeros([2])]));
  expect(outputs.y.shape).toEqual([3]);
  outputs.y.dispose();
});
