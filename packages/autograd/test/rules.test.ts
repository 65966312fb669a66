/** Over all rows of the op table: nobody edits this file when a row is added. */
import {
  CpuDevice,
  drawCase,
  isFloat,
  type OpCase,
  type OpName,
  type Ops,
  opNames,
  rowOf,
  type Tensor,
  TestRandom,
} from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { gradcheck, gradTable, type PullRow, Tape } from "../src/index.ts";
import { expectCode, expectNoLeaks, propertyRuns, relativeError } from "./support.ts";

const cases = fc.record({
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
  // The extents of a row's own ranges, narrowed: a finite difference runs the reference dozens of times.
  scale: fc.constantFrom(0.5, 0.3, 0.1, 0),
});

const pullRows = opNames.filter((name) => !("none" in gradTable[name]));
const rowFor = (name: OpName) => gradTable[name] as PullRow;

/** Positions of the inputs that have a gradient and were not left out. */
function differentiable(name: OpName, drawn: OpCase): number[] {
  const { inputs } = rowFor(name);
  return [...drawn.inputs.keys()].filter((i) => {
    const input = drawn.inputs[i];
    return input && isFloat(input.dtype) && !("none" in inputs[input.name]);
  });
}

/** Calls an op by name; `tensors` are the operands that were not left out. */
function call(ops: Ops, name: OpName, drawn: OpCase, tensors: readonly Tensor[]): Tensor {
  let next = 0;
  const operands = drawn.inputs.map((input) => (input ? tensors[next++] : null));
  return (ops[name] as (...args: unknown[]) => Tensor)(...operands, drawn.attrs);
}

interface Outcome {
  readonly gradients: Map<string, ArrayLike<number>>;
  readonly saved: Set<string>;
}

/** Gradients of ⟨u, op⟩ with the inputs at `tracked` as leaves, and what the tape saved for them. */
async function runTape(
  name: OpName,
  drawn: OpCase,
  tracked: readonly number[],
  seed: number,
  device = new CpuDevice({ precision: "f64" }),
): Promise<Outcome> {
  const operands = drawn.inputs.map(
    (input) => input && device.tensor(input.values, input.shape, { dtype: input.dtype }),
  );
  const inputBytes = device.memory.liveBytes;
  const tape = new Tape(
    device,
    tracked.map((i) => [drawn.inputs[i]!.name, operands[i]!]),
  );
  // The forward pass in a scope of its own: what the backward pass needs must live in the tape alone.
  const y = device.scope(() =>
    call(
      tape,
      name,
      drawn,
      operands.filter((operand) => operand !== null),
    ),
  );
  expect(tape.records.length).toBe(1);
  const [record] = tape.records;
  expect(record.tracked).toEqual(tracked.map((i) => drawn.inputs[i]!.name));
  const u = device.tensor(new TestRandom(seed).normals(y.size), y.shape, { dtype: y.dtype });
  const gradients = tape.backward(y, u);
  y.dispose();
  u.dispose();
  expect(device.memory.live.saved, "saved bytes after backward").toBe(0);
  const values = new Map<string, ArrayLike<number>>();
  for (const i of tracked) {
    const gradient = gradients.get(operands[i]!)!;
    expect(gradient.dtype).toBe("f32");
    expect(gradient.category).toBe("gradients");
    values.set(drawn.inputs[i]!.name, await gradient.read());
    gradient.dispose();
  }
  expect(device.memory.liveBytes, "live bytes after backward").toBe(inputBytes);
  for (const operand of operands) operand?.dispose();
  expectNoLeaks(device);
  return { gradients: values, saved: new Set(record.saved.map((saved) => saved.name)) };
}

describe("gradients agree with finite differences", () => {
  it.each(pullRows)("%s", async (name) => {
    const moved = new Set<string>();
    const property = fc.asyncProperty(cases, async ({ seed, scale }) => {
      const drawn = drawCase(rowOf(name), new TestRandom(seed, scale));
      const checked = differentiable(name, drawn);
      const inputs = drawn.inputs.flatMap((input, i) =>
        input ? [{ ...input, constant: !checked.includes(i) }] : [],
      );
      const f = (ops: Ops, ...tensors: Tensor[]) => call(ops, name, drawn, tensors);
      const report = await gradcheck(f, inputs, { seed, allowZero: true }); // some draws have no elements
      for (const input of report.inputs) if (!input.isZero) moved.add(input.name);
    });
    await fc.assert(property, propertyRuns(16));
    const { inputs } = rowFor(name);
    const wanted = Object.keys(inputs).filter((input) => !("none" in inputs[input]));
    expect([...moved].sort(), "inputs with a gradient that is not 0").toEqual(
      name === "sign" ? [] : wanted.sort(),
    );
  });
});

describe("every subset of tracked inputs gets the same gradients, and saves no more", () => {
  it.each(pullRows)("%s", async (name) => {
    const property = fc.asyncProperty(cases, async ({ seed, scale }) => {
      const drawn = drawCase(rowOf(name), new TestRandom(seed, scale));
      const all = differentiable(name, drawn);
      const whole = await runTape(name, drawn, all, seed);
      for (let bits = 1; bits < 2 ** all.length - 1; bits++) {
        const part = await runTape(
          name,
          drawn,
          all.filter((_, k) => bits & (1 << k)),
          seed,
        );
        for (const [input, gradient] of part.gradients) {
          const want = whole.gradients.get(input)!;
          expect(relativeError(Float64Array.from(gradient), Float64Array.from(want))).toBeLessThan(1e-12);
        }
        for (const saved of part.saved) expect(whole.saved, `${name} saves more for fewer`).toContain(saved);
      }
    });
    await fc.assert(property, propertyRuns(8));
  });
});

describe("f16 operands get f32 gradients near those in double", () => {
  it.each(pullRows)("%s", async (name) => {
    const property = fc.asyncProperty(cases, async ({ seed, scale }) => {
      const drawn = drawCase(rowOf(name), new TestRandom(seed, scale), "f16");
      const all = differentiable(name, drawn);
      const want = await runTape(name, drawn, all, seed);
      const got = await runTape(name, drawn, all, seed, new CpuDevice());
      for (const [input, gradient] of got.gradients) {
        const [a, b] = [Float64Array.from(gradient), Float64Array.from(want.gradients.get(input)!)];
        // A few roundings to 11 bits; where terms cancel, the error is relative to terms near 1.
        const near =
          Math.hypot(...b.map((x, i) => a[i] - x)) <= 0.01 * Math.hypot(...b) + 0.004 * Math.sqrt(b.length);
        expect(near, `${name}.${input}: relative error ${relativeError(a, b)}`).toBe(true);
      }
    });
    await fc.assert(property, propertyRuns(8));
  });
});

describe("rules that read f16 give the gradients of f32 copies, to the bit", () => {
  const rules = (name: OpName) => [...Object.values(rowFor(name).inputs), rowFor(name).joint];
  const readers = pullRows.filter((name) =>
    rules(name).some((rule) => rule && "run" in rule && rule.readsF16),
  );

  /** Gradients of ⟨u, op⟩ with activations in the places `tracked`, which the tape keeps in a format. */
  async function gradientsIn(saved: "f32" | "f16", name: OpName, drawn: OpCase, tracked: readonly number[]) {
    const device = new CpuDevice();
    const leaves = drawn.inputs.map(
      (input) =>
        input &&
        device.tensor(input.values, input.shape, { dtype: isFloat(input.dtype) ? "f32" : input.dtype }),
    );
    using tape = new Tape(
      device,
      tracked.map((i) => leaves[i]!),
      { formats: { saved } },
    );
    const y = device.scope(() => {
      const operands = leaves.map((leaf, i) =>
        tracked.includes(i) ? tape.scale(leaf!, { factor: 1 }) : leaf,
      );
      return call(
        tape,
        name,
        drawn,
        operands.filter((operand) => operand !== null),
      );
    });
    const u = device.tensor(new TestRandom(1).normals(y.size), y.shape);
    const gradients = tape.backward(y, u);
    const values = await Promise.all(tracked.map((i) => gradients.get(leaves[i]!)!.read()));
    for (const tensor of [...leaves, y, u, ...gradients.values()]) tensor?.dispose();
    expectNoLeaks(device);
    return values;
  }

  it.each(readers)("%s", async (name) => {
    const property = fc.asyncProperty(cases, async ({ seed, scale }) => {
      const drawn = drawCase(rowOf(name), new TestRandom(seed, scale), "f16"); // values that f16 holds exactly
      const all = differentiable(name, drawn);
      for (const tracked of [all, ...all.map((i) => [i])]) {
        const [want, got] = [
          await gradientsIn("f32", name, drawn, tracked),
          await gradientsIn("f16", name, drawn, tracked),
        ];
        expect(got).toEqual(want);
      }
    });
    await fc.assert(property, propertyRuns(8));
  });
});

describe("the gradient table", () => {
  it("has an entry for each input of each row, and no others", () => {
    expect(Object.keys(gradTable).sort()).toEqual([...opNames].sort());
    for (const name of pullRows) {
      const { inputs, op, joint } = rowFor(name);
      const { signature } = rowOf(name);
      expect(op).toBe(name);
      expect(Object.keys(inputs)).toEqual(signature.inputs.map((operand) => operand.name));
      const known = [...signature.inputs, ...signature.outputs].map((operand) => operand.name);
      for (const entry of [...Object.values(inputs), ...(joint ? [joint] : [])]) {
        if (!("none" in entry)) expect(known).toEqual(expect.arrayContaining([...entry.saves]));
      }
    }
  });

  it("gives rules to rows with one float output that update nothing, and a true reason to all others", () => {
    for (const name of opNames) {
      const row = gradTable[name];
      const { inputs, outputs } = rowOf(name).signature;
      const primary = outputs.filter((operand) => !operand.residual);
      const updates = inputs.some((operand) => operand.updated);
      if (!("none" in row)) {
        expect(updates, name).toBe(false);
        expect(primary.length, name).toBe(1);
        continue;
      }
      if (updates) expect(row.none, name).toBe("in place");
      else if (primary.every(({ dtype }) => dtype !== null && !isFloat(dtype))) {
        expect(row.none, name).toBe("integer output");
      } else
        expect([
          "gradients of gradients are not supported",
          "part of the optimizer",
          "a quantized weight",
        ]).toContain(row.none);
    }
  });

  it("refuses tracked inputs where it gives a reason, unless the output is an integer", () => {
    for (const name of opNames) {
      const drawn = drawCase(rowOf(name), new TestRandom(5, 0.3));
      const row = gradTable[name];
      for (const [i, input] of drawn.inputs.entries()) {
        if (!input || !isFloat(input.dtype)) continue;
        const entry = "none" in row ? row : row.inputs[input.name as keyof typeof row.inputs];
        if (!("none" in entry)) continue;
        const device = new CpuDevice();
        device.scope(() => {
          const operands = drawn.inputs.flatMap((each) =>
            each ? [device.tensor(each.values, each.shape, { dtype: each.dtype })] : [],
          );
          const leaf = operands[drawn.inputs.slice(0, i).filter((each) => each).length];
          using tape = new Tape(device, [leaf]);
          const run = () => call(tape, name, drawn, operands);
          const { none } = entry as { none: string };
          if (none === "integer output") expect(tape.isTracked(run())).toBe(false);
          else if (none === "in place") expectCode("A-IN-PLACE", run, input.name);
          else if (none.startsWith("gradients")) expectCode("A-SECOND-ORDER", run, input.name);
          else expectCode("A-NO-GRADIENT", run, input.name);
          expect(tape.records).toEqual([]);
        });
        expectNoLeaks(device);
      }
    }
  });

  it("gives x^0 the gradient 0, at x = 0 too", async () => {
    const device = new CpuDevice();
    using x = device.tensor([0, -2, 3], [3]);
    using tape = new Tape(device, [x]);
    using y = tape.pow(x, { exponent: 0 });
    using dx = tape.backward(y, x).get(x)!;
    expect((await dx.read()).map(Math.abs)).toEqual(new Float32Array(3));
  });
});
