/** What the types of gradient rows refuse; `npm run check` compiles this file. */
import type { OpName } from "@sidenet/tensor";
import { expect, it } from "vitest";
import { gradTable } from "../src/index.ts";
import { type GradRow, gradRow } from "../src/rules/grad-row.ts";

it("does not compile with an input, save or operand misspelt", () => {
  const misspelt = () =>
    gradRow("mul", {
      a: { saves: ["b"], pull: (ops, dy, { b }) => ops.mul(dy, b) },
      // @ts-expect-error: mul has no operand "c"
      b: { saves: ["c"], pull: (_ops, dy) => dy },
    });
  expect(misspelt).toThrow('"c"');
  gradRow("mul", {
    // @ts-expect-error: a is not among the saves
    a: { saves: ["b"], pull: (ops, dy, { a }) => ops.mul(dy, a) },
    b: { saves: ["a"], pull: (ops, dy, { a }) => ops.mul(dy, a) },
  });
  gradRow("rmsNorm", {
    // @ts-expect-error: the gain is null when left out, and mul wants a tensor
    x: { saves: ["gain"], pull: (ops, dy, { gain }) => ops.mul(dy, gain) },
    gain: { saves: [], pull: (_ops, dy) => dy },
  });
  // @ts-expect-error: b is left out
  expect(() => gradRow("mul", { a: { saves: [], pull: (_ops, dy) => dy } })).toThrow("no entry for b");
});

it("does not compile with a row left out, or under another op's name", () => {
  const { add, ...others } = gradTable;
  // @ts-expect-error: add is left out
  others satisfies { readonly [K in OpName]: GradRow<K> };
  // @ts-expect-error: a row knows its op
  add satisfies GradRow<"mul">;
  expect(others).not.toHaveProperty("add");
});
