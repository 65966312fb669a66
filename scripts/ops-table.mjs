// Writes docs/ops.md, the reference of every op, from the op table and the gradient table.
//
//   npm run build && node scripts/ops-table.mjs

import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gradTable } from "@sidenet/autograd";
import { drawCase, MetaDevice, opNames, rowOf, TestRandom } from "@sidenet/tensor";
import { scriptOptions } from "./lib/options.mjs";

export const FILE = fileURLToPath(new URL("../docs/ops.md", import.meta.url));

const HEAD = `# Operations

Written by \`node scripts/ops-table.mjs\` from the op table (packages/tensor/src/ops) and the gradient table
(packages/autograd/src/rules); a test fails when it is stale. Every op runs on \`cpu\` (its reference, in double),
\`webgpu\` (its kernels, \`kernels/*.wgsl\`), \`wasm\` (SIMD kernels, or the reference) and \`meta\` (shapes and memory, no data).

- **Signature**: \`N..\` is any number of axes with product N; \`?\` marks an optional operand, \`!\` one that is updated in
  place; without a dtype an operand is f32 or f16, with \`number\` also i32 or u32, with \`any\` of any type. Residuals, which
  are made only for a backward pass, follow \`|\`.
- **WebAssembly** says how the op runs on \`wasm\`: by kernels, by its reference on the same memory, or by kernels but by the
  reference for some operands (such as an extreme along an inner axis, or f16 state of an optimizer).
- **Kernels** are those of all adapters: \`*-rows\` runs only on software drivers, where extents allow.
- **Size**: a tensor larger than a binding (128 MiB where an adapter promises no more) is processed in windows of rows. An op
  throws \`T-TOO-LARGE\` if what it needs at once does not fit a binding: one row of the last axis; for reductions, \`cumsum\` and
  \`gatherAlong\`, everything at one index of the axes before theirs (except sums and extremes along the first axis) and, for
  reductions, the result; for \`transpose\`, one index of the first axis of either side; for attention, the keys of one sequence.
  Creating a tensor of more than 2^31 elements or 2^32 bytes throws.
- **Gradients**: the inputs that have one, and what each saves from the forward pass; or why there is none.
- **Tolerance** of f32 results on WebGPU: of the largest magnitude in the tensor, in units of ε = 2^-23, plus an absolute
  part. Where it grows with the length of sums, it is that for extents of 256. f16 storage adds its own rounding. Each
  row has the derivation beside the number.
- **Flops**: a multiply-add is 2; residuals are counted where there are any. Letters are those of the signature; outer, length, inner are the extents around the axis.
`;

/**
 * The formula of an op's FLOPs as a sum of products of extents, computed from their values at extents 0 and 1; null if they
 * are not of that form.
 */
function polynomial(row, letters) {
  const at = (values) => row.flops(values, row.attrs, () => true);
  const subsets = Array.from({ length: 2 ** letters.length }, (_, bits) =>
    letters.filter((_letter, i) => bits & (1 << i)),
  );
  const ones = (subset) =>
    Object.fromEntries(letters.map((letter) => [letter, Number(subset.includes(letter))]));
  const terms = subsets
    .map((subset) => {
      const parts = subsets.filter((part) => part.every((letter) => subset.includes(letter)));
      const factor = parts.reduce(
        (sum, part) => sum + (-1) ** (subset.length - part.length) * at(ones(part)),
        0,
      );
      return { subset, factor };
    })
    .filter(({ factor }) => factor !== 0);
  const probe = Object.fromEntries(letters.map((letter, i) => [letter, 3 + 2 * i]));
  const value = terms.reduce(
    (sum, { subset, factor }) => sum + subset.reduce((product, letter) => product * probe[letter], factor),
    0,
  );
  const holds = Number.isFinite(value) && Math.abs(value - at(probe)) <= 1e-9 * Math.abs(value);
  const text = terms.map(({ subset, factor }) =>
    [...(factor === 1 && subset.length > 0 ? [] : [factor]), ...subset].join(" "),
  );
  return holds ? text.reverse().join(" + ") || "0" : null;
}

/** The letters of the signature, and those that `infer` adds. */
function extentNames(row) {
  const names = new Set();
  for (const { dims } of [...row.signature.inputs, ...row.signature.outputs]) {
    for (const letter of dims) names.add(letter.replace("..", ""));
  }
  const { inputs, attrs } = drawCase(row, new TestRandom(1));
  const inferred = row.infer?.(inputs, { ...row.attrs, ...attrs });
  for (const name of Object.keys(inferred?.dims ?? {})) names.add(name);
  return [...names];
}

/** Adapters for which ops choose different kernels. */
const PROFILES = [
  { adapterClass: "software", subgroups: true, subgroupSize: 8 },
  { adapterClass: "integrated", subgroups: false, subgroupSize: 32 },
  { adapterClass: "discrete", subgroups: true, subgroupSize: 32 },
];

/** The kernel files that random cases dispatch on any of these adapters. */
function kernelsOf(row, name) {
  const files = new Set();
  const residuals = row.signature.outputs.map((output) => output.name);
  for (const profile of PROFILES) {
    const meta = new MetaDevice(profile, (kernel) => files.add(kernel.split("/")[0]));
    for (let seed = 1; seed <= 24; seed++) {
      const { inputs, attrs } = drawCase(row, new TestRandom(seed));
      meta.scope(() => {
        const tensors = inputs.map((input) => input && meta.empty(input.shape, { dtype: input.dtype }));
        meta.run(name, tensors, attrs, residuals);
      });
    }
  }
  return [...files].sort();
}

/** How random cases of an op run on WebAssembly: by kernels, by the reference, or some by each. */
function wasmText(row, name) {
  let dispatches = 0;
  const meta = new MetaDevice({ wasm: { panelRows: 6 } }, () => dispatches++);
  const residuals = row.signature.outputs.map((output) => output.name);
  const used = { kernels: false, reference: false };
  for (const elem of ["f32", "f16"]) {
    for (let seed = 1; seed <= 40; seed++) {
      const { inputs, attrs } = drawCase(row, new TestRandom(seed), elem);
      meta.scope(() => {
        const tensors = inputs.map((input) => input && meta.empty(input.shape, { dtype: input.dtype }));
        const before = dispatches;
        const outputs = Object.values(meta.run(name, tensors, attrs, residuals));
        if (dispatches > before) used.kernels = true;
        // Without a dispatch the reference has run, unless there was nothing to compute.
        else if ([...tensors, ...outputs].every((tensor) => !tensor || tensor.size > 0))
          used.reference = true;
      });
    }
  }
  if (row.view) return "a view";
  if (!used.kernels) return "reference";
  return used.reference ? "kernels; reference for some" : "kernels";
}

function gradientText(row) {
  if ("none" in row) return row.none;
  const entries = Object.entries(row.inputs).map(([input, entry]) => {
    if ("none" in entry) return null;
    return entry.saves.length === 0 ? input : `${input} (${entry.saves.join(", ")})`;
  });
  return entries.filter((entry) => entry !== null).join("; ");
}

const rounded = (value) => Number(value.toPrecision(2));

function toleranceText(row, letters) {
  const extents = Object.fromEntries(letters.map((letter) => [letter, 256]));
  const { rel, abs = 0 } = typeof row.close === "function" ? row.close(extents) : row.close;
  const parts = [
    ...(rel > 0 ? [`${rounded(rel * 2 ** 23)} ε`] : []),
    ...(abs > 0 ? [`${rounded(abs)}`] : []),
  ];
  return parts.join(" + ") || "exact";
}

const cell = (text) => text.replaceAll("|", "\\|");

/** The page. */
export function opsTable() {
  const lines = [...opNames].sort().flatMap((name) => {
    const row = rowOf(name);
    const letters = extentNames(row);
    const attrs = Object.entries(row.attrs).map(([key, value]) => `${key} = ${JSON.stringify(value)}`);
    const kernels = kernelsOf(row, name);
    const facts = [
      `\`${row.sig}\``,
      ...(attrs.length > 0 ? [`attributes ${attrs.map((attr) => `\`${attr}\``).join(", ")}`] : []),
    ];
    const table = [
      wasmText(row, name),
      row.view ? "none: a view" : kernels.map((file) => `\`${file}\``).join(" "),
      gradientText(gradTable[name]),
      toleranceText(row, letters),
      polynomial(row, letters) ?? "see its row",
    ];
    return [
      `## ${name}`,
      "",
      `${row.doc}.`,
      "",
      `${facts.join("; ")}`,
      "",
      "| WebAssembly | kernels | gradients (saved for each) | tolerance | flops |",
      "| --- | --- | --- | --- | --- |",
      `| ${table.map(cell).join(" | ")} |`,
      "",
    ];
  });
  return `${HEAD}\n${lines.join("\n").trimEnd()}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  scriptOptions({});
  writeFileSync(FILE, opsTable());
  console.log("docs/ops.md written");
}
