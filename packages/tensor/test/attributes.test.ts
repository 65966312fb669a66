// Attributes that an op cannot take: of another type, out of range, unknown.
import { CpuDevice, drawCase, MetaDevice, opNames, rowOf, TestRandom, unary } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { loose, messageOf } from "./support.ts";

describe("an attribute", () => {
  it("that is undefined has its default, for every op that has some", () => {
    const device = new MetaDevice();
    const withAttrs = opNames.filter((name) => Object.keys(rowOf(name).attrs).length > 0);
    expect(withAttrs.length).toBeGreaterThan(20);
    for (const name of withAttrs) {
      const seen: object[] = [];
      device.run = (_op, _inputs, attrs = {}) => {
        seen.push(attrs);
        return {};
      };
      const { signature, attrs } = rowOf(name);
      const inputs = signature.inputs.map(() => null);
      loose(device)[name](...inputs, Object.fromEntries(Object.keys(attrs).map((key) => [key, undefined])));
      expect(seen, name).toEqual([{}]);
    }
  });

  it("that is undefined changes no result", async () => {
    const device = new CpuDevice();
    using x = device.tensor([1, 2, 3], [1, 3]);
    const given: { eps?: number } = {};
    using plain = device.ops.rmsNorm(x);
    // @ts-expect-error: allowed where exactOptionalPropertyTypes is off, as TypeScript has it by default
    using norm = device.ops.rmsNorm(x, null, { eps: given.eps });
    expect(await norm.read()).toEqual(await plain.read());
  });

  it("of another type is refused, where JavaScript would compute with it", () => {
    const device = new CpuDevice();
    using x = device.tensor([1], [1]);
    const refused = (name: string, attrs: object) => messageOf(() => loose(device)[name](x, attrs).dispose());
    expect(refused("scale", { factor: "2" })).toBe(
      '[T-ATTR] scale: factor is "2", wanted a value of type number.',
    );
    expect(refused("scale", { factor: true })).toContain("factor is true, wanted a value of type number");
    expect(refused("max", { axis: "0" })).toContain('axis is "0", wanted a value of type number');
    expect(refused("cumsum", { reverse: 1 })).toContain("reverse is 1, wanted a value of type boolean");
    expect(refused("reshape", { shape: 1 })).toContain("shape is 1, wanted a value of type array");
    expect(refused("cast", { to: 16 })).toContain("to is 16, wanted a value of type string");
    expect(refused("max", { axis: null })).toBe("no error");
  });

  it("that is a number is refused as null, for every op that has some, unless its row allows null", () => {
    const device = new MetaDevice();
    device.run = () => ({});
    const kinds = { number: 0, null: 0 };
    for (const name of opNames) {
      const { signature, attrs, nullable = [] } = rowOf(name);
      const inputs = signature.inputs.map(() => null);
      for (const [key, fallback] of Object.entries(attrs)) {
        const message = messageOf(() => loose(device)[name](...inputs, { [key]: null }));
        if (fallback === null || nullable.includes(key)) {
          expect(message, `${name}.${key}`).toBe("no error");
          kinds.null++;
        } else if (typeof fallback === "number") {
          expect(message).toBe(`[T-ATTR] ${name}: ${key} is null, wanted a value of type number.`);
          kinds.number++;
        }
      }
    }
    expect(kinds.number).toBeGreaterThan(20);
    expect(kinds.null).toBeGreaterThan(3);
    expect(rowOf("argmax").nullable).toEqual(["axis"]);
  });

  it("that is no finite number is refused for every op where it has no meaning", () => {
    const device = new MetaDevice();
    device.run = () => ({});
    const infinite = new Set<string>();
    const nan = new Set<string>();
    let count = 0;
    for (const name of opNames) {
      const row = rowOf(name);
      const inputs = row.signature.inputs.map(() => null);
      const given = (attrs: object) => messageOf(() => loose(device)[name](...inputs, attrs));
      for (const key of Object.keys(row.attrs)) {
        const fallback: unknown = row.attrs[key];
        if (fallback !== null && typeof fallback !== "number") continue;
        count++;
        expect(given({ [key]: fallback })).toBe("no error");
        const refusal = given({ [key]: Number.NaN });
        if (refusal === "no error") nan.add(`${name}.${key}`);
        else expect(refusal).toContain(`[T-ATTR] ${name}: ${key} is NaN, wanted a`);
        for (const value of [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1e39]) {
          if (given({ [key]: value }) === "no error") infinite.add(`${name}.${key}`);
        }
      }
      for (let seed = 0; seed < 20; seed++) {
        const { attrs } = drawCase(row, new TestRandom(seed));
        expect(given(attrs), name).toBe("no error");
      }
    }
    expect(count).toBeGreaterThan(60);
    expect([...infinite].sort()).toEqual(["clamp.max", "clamp.min", "clipFactor.maxNorm", "fill.value"]);
    expect([...nan]).toEqual(["fill.value"]);
  });

  it("out of its range is refused, and the range named", () => {
    const device = new CpuDevice();
    using x = device.tensor([1, 2], [1, 2]);
    const refused = (name: string, attrs: object) => messageOf(() => loose(device)[name](x, attrs).dispose());
    expect(refused("scale", { factor: Number.NaN })).toBe(
      "[T-ATTR] scale: factor is NaN, wanted a finite number.",
    );
    expect(messageOf(() => device.ops.rmsNorm(x, null, { eps: -1 }).dispose())).toBe(
      "[T-ATTR] rmsNorm: eps is -1, wanted a finite number >= 0.",
    );
    expect(refused("dropout", { seed: 0.5 })).toBe(
      "[T-ATTR] dropout: seed is 0.5, wanted a whole number from 0 to 4294967295.",
    );
    using targets = device.tensor([0], [1], { dtype: "i32" });
    const smoothed = () => device.ops.crossEntropy(x, targets, { labelSmoothing: 2 }).dispose();
    expect(messageOf(smoothed)).toBe(
      "[T-ATTR] crossEntropy: labelSmoothing is 2, wanted a finite number from 0 to 1.",
    );
    const ignored = () => device.ops.crossEntropy(x, targets, { ignoreIndex: 2 ** 32 }).dispose();
    expect(messageOf(ignored)).toBe(
      "[T-ATTR] crossEntropy: ignoreIndex is 4294967296, wanted a whole number from -2147483648 to 2147483647.",
    );
    const row = unary({
      name: "shifted",
      doc: "y = x + by",
      attrs: { by: 0 },
      wgsl: "return x + p.scalar;",
      flops: 1,
      rel: 0,
      scalars: ({ by }) => [by],
      f: (value, { by }) => value + by,
      ranges: { by: { least: 1, most: 2 } },
    });
    expect(messageOf(() => device.ops.call(row, x, { by: 3 }).dispose())).toContain(
      "shifted: by is 3, wanted",
    );
    expect(device.memory.liveCount).toBe(2);
  });

  it("that the op does not have is named, with those that it has", () => {
    const device = new CpuDevice();
    using x = device.tensor([1], [1]);
    expect(messageOf(() => loose(device).dropout(x, { p: 0.5 }))).toMatch(
      /\[T-ATTR\] dropout has no attribute "p"; it has /,
    );
    // @ts-expect-error: add has no attributes
    expect(messageOf(() => device.ops.add(x, x, { alpha: 2 }))).toContain("it takes none");
    // @ts-expect-error: and two operands
    expect(messageOf(() => device.ops.add(x, x, x))).toContain("no further operand");
    expect(messageOf(() => loose(device).gelu(x, { form: "fast" }))).toContain(
      'form "fast" is neither "erf" nor "tanh"',
    );
    expect(messageOf(() => loose(device).geluBackward(x, x, { form: "fast" }))).toContain(
      'form "fast" is neither',
    );
    for (const value of [2, "tanh", true]) {
      expect(messageOf(() => loose(device).scale(x, value))).toBe(
        `[T-ATTR] scale: attributes are ${JSON.stringify(value)}, wanted an object such as { factor: 1 }.`,
      );
    }
    expect(device.memory.liveCount).toBe(1);
  });
});
