/** Signatures of ops of one's own: mistakes in them are named where the op is defined. */
import { CpuDevice, type Dims, type DimsOf, defineOp, type OpRow } from "@sidenet/tensor";
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

describe("letters that only outputs have", () => {
  const infer = (shape: number[]) => () => ({ outputs: [{ shape, dtype: "f32" }] });

  it("are extents of kernel and reference, by the shape that infer gives", () => {
    let seen: Dims = {};
    const reference = (_io: object, dims: Dims) => {
      seen = dims;
    };
    const row = rowOf("x[N] -> y[K,M..]", { infer: infer([3, 4, 5]), reference });
    using device = new CpuDevice();
    device.scope(() => device.run(row, [device.zeros([2])]).y.size);
    expect(seen).toEqual({ N: 2, K: 3, M: 20 });
  });

  it("have types, and others may be undefined", () => {
    type Known<T> = keyof { [K in keyof T as string extends K ? never : K]: T[K] };
    const letters: Record<Known<DimsOf<"x[N..,C] b?[O] -> y[K,N..] | z:f32[P]">>, true> = {
      N: true,
      C: true,
      K: true,
      P: true,
      // @ts-expect-error: an optional input gives none
      O: true,
    };
    expect(Object.keys(letters)).toHaveLength(5);
  });

  it("are refused where infer contradicts the signature", () => {
    using device = new CpuDevice();
    const row = rowOf("x[N] -> y[N,K]", { infer: infer([3, 4]) });
    const message = messageOf(() => device.scope(() => device.run(row, [device.zeros([2])])));
    expect(message).toContain("[T-SIGNATURE] own: infer made y [3, 4], wanted y[N=2, K]");
  });
});
