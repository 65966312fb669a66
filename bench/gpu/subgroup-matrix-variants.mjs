// Variants of kernels/matmul-matrix.wgsl, made by editing its text.

/** Replaces each `from` by its `to`. Throws if the kernel has changed and no longer contains a `from`. */
function edit(text, ...changes) {
  let edited = text;
  for (const [from, to] of changes) {
    const isThere = typeof from === "string" ? edited.includes(from) : edited.search(from) >= 0;
    if (!isThere)
      throw new Error(
        `matmul-matrix.wgsl no longer contains ${from}: adapt bench/gpu/subgroup-matrix-variants.mjs`,
      );
    edited = typeof from === "string" ? edited.replaceAll(from, to) : edited.replace(from, to);
  }
  return edited;
}

const LOOP = "  for (var k = start; k < end; k += DEPTH) {";
const FIRST = /\n {2}var fa0 = fetchA[\s\S]*?fb3 = fetchB\(col, start, t \+ 768\);/;
const PLACE = /\n {4}blockA\[to\] = fa0;[\s\S]*?blockB\[placeB\(t \+ 768\)\] = fb3;/;
const NEXT = /\n {4}fa0 = fetchA[\s\S]*?fb3 = fetchB\(col, next, t \+ 768\);/;
const FRAGMENT_LOADS = /let ([ab]\d) = load([AB])\((s[mn](?: \+ \d+)?), q\);/g;

/** Blocks of `depth` of k; fetched values are in arrays, whose loops the compiler may or may not unroll. */
function ofDepth(text, depth) {
  const count = depth / 8; // vectors of an operand and thread
  const each = (line) => `for (var i = 0u; i < ${count}; i++) { ${line} }`;
  const [perRow, rest] = [depth / 4, depth / 4 - 1];
  return edit(
    text,
    [/const DEPTH: u32 = 32;/, `const DEPTH: u32 = ${depth};`],
    [/i \/ 8, p\.([mn]) - 1/g, `i / ${perRow}, p.$1 - 1`],
    [/i % 8 \* 4;\n {2}return select/g, `(i & ${rest}) * 4;\n  return select`],
    ["return i / 8 * STEP_K + i % 8;", `return i / ${perRow} * STEP_K + (i & ${rest});`],
    [
      FIRST,
      `\n  var fa: array<vec4<f16>, ${count}>;\n  var fb: array<vec4<f16>, ${count}>;\n  ${each("fa[i] = fetchA(row, start, t + 256 * i); fb[i] = fetchB(col, start, t + 256 * i);")}`,
    ],
    [PLACE, `\n    ${each("blockA[placeA(t + 256 * i)] = fa[i]; blockB[placeB(t + 256 * i)] = fb[i];")}`],
    [
      NEXT,
      `\n    ${each("fa[i] = fetchA(row, next, t + 256 * i); fb[i] = fetchB(col, next, t + 256 * i);")}`,
    ],
    [/\n {2}let to = t \/ 8.*\n/, "\n"],
    ["fn placeB", `fn placeA(i: u32) -> u32 { return i / ${perRow} * STEP_K + (i & ${rest}); }\nfn placeB`],
  );
}

/** Stores one 16 x 16 fragment at a time through `results`: 10 KiB of workgroup memory instead of 18, twice the barriers at the end. */
function smallResults(text) {
  return edit(
    text,
    ["const STEP_Y: u32 = 9;", "const STEP_Y: u32 = 5;"],
    ["for (var i = lane; i < 128; i += 32) {", "for (var i = lane; i < 64; i += 32) {"],
    [
      "let m = row + i / 8;\n    let n = col + i % 8 * 4;",
      "let m = row + i / 4;\n    let n = col + i % 4 * 4;",
    ],
    [
      "results[(subgroup * 16 + i / 8) * STEP_Y + i % 8]",
      "results[(subgroup * 16 + i / 4) * STEP_Y + i % 4]",
    ],
    [
      /fn flush\(c0: Sum, c1: Sum,([\s\S]*?)\n}/,
      `fn flush(c0: Sum, c1: Sum,$1\n  flushOne(c1, subgroup, lane, split, at + vec2(0, 16));\n}\nfn flushOne(c: Sum, subgroup: u32, lane: u32, split: u32, at: vec2<u32>) {
  workgroupBarrier();
  subgroupMatrixStore<row_major>(&results, subgroup * 16 * STEP_Y, c, STEP_Y);
  workgroupBarrier();
  store(subgroup, lane, split, at.x, at.y);
}`,
    ],
    [/\n {2}subgroupMatrixStore<row_major>\(&results, y0 \+ 4, c1, STEP_Y\);/, ""],
  );
}

/** Loads of 16 bytes instead of 8, with a and b as vectors of u32; only for the form nt. */
function wideFetch(text) {
  const load = (name, row, count) =>
    `fn fetch${name.toUpperCase()}(first: u32, k0: u32, i: u32) -> vec4<u32> {
  let r = min(first + i / 4, ${count} - 1);
  let k = k0 + i % 4 * 8;
  return select(vec4<u32>(), ${name}[(${row} + min(k, p.k - 8)) / 8], k < p.k);
}`;
  const place = (array, value, i) =>
    `${array}[wide(${i})] = bitcast<vec4<f16>>(${value}.xy); ${array}[wide(${i}) + 1] = bitcast<vec4<f16>>(${value}.zw);`;
  const pair = (k) =>
    `fa0 = fetchA(row, ${k}, t); fa1 = fetchA(row, ${k}, t + 256); fb0 = fetchB(col, ${k}, t); fb1 = fetchB(col, ${k}, t + 256);`;
  return edit(
    text,
    [/alias a_v = .*/, "alias a_v = vec4<u32>;"],
    [/alias b_v = .*/, "alias b_v = vec4<u32>;"],
    [/fn fetchA[\s\S]*?\n}/, load("a", "p.aAt + r * p.aRow", "p.m")],
    [/fn fetchB[\s\S]*?\n}/, load("b", "r * p.k", "p.n")],
    ["fn placeB", "fn wide(i: u32) -> u32 { return i / 4 * STEP_K + i % 4 * 2; }\nfn placeB"],
    [
      FIRST,
      `\n  var fa0: vec4<u32>; var fa1: vec4<u32>; var fb0: vec4<u32>; var fb1: vec4<u32>;\n  ${pair("start")}`,
    ],
    [
      PLACE,
      `\n    ${place("blockA", "fa0", "t")} ${place("blockA", "fa1", "t + 256")}\n    ${place("blockB", "fb0", "t")} ${place("blockB", "fb1", "t + 256")}`,
    ],
    [NEXT, `\n    ${pair("next")}`],
    [/\n {2}let to = t \/ 8.*\n/, "\n"],
  );
}

/** Loads the 16 x 16 fragments from workgroup memory once, before the loop: fetches, stores and multiplications remain. */
function fragmentsOnce(text) {
  const loads = [...text.matchAll(FRAGMENT_LOADS)];
  if (loads.length === 0)
    throw new Error(
      "matmul-matrix.wgsl loads its fragments differently: adapt bench/gpu/subgroup-matrix-variants.mjs",
    );
  const before = loads.map(([, name, side, at]) => `  let ${name} = load${side}(${at}, 0);`).join("\n");
  return edit(text.replace(/ *let [ab]\d = load[AB].*\n/g, ""), [LOOP, `${before}\n${LOOP}`]);
}

/**
 * The variants: name, text, and `isWhole`, which is false for those that lack a stage, compute a wrong result, and only serve
 * to be timed. Throws if the kernel no longer contains what they change.
 */
export function subgroupMatrixVariants(text) {
  return [
    { name: "as it is", isWhole: true, text },
    { name: "16 bytes a fetch", isWhole: true, text: wideFetch(text) },
    { name: "results of one fragment", isWhole: true, text: smallResults(text) },
    { name: "arrays, depth 32", isWhole: true, text: ofDepth(text, 32) },
    { name: "arrays, depth 16", isWhole: true, text: ofDepth(text, 16) },
    {
      name: "arrays, depth 64, results of one fragment",
      isWhole: true,
      text: smallResults(ofDepth(text, 64)),
    },
    { name: "without fetches", isWhole: false, text: edit(text, [NEXT, ""]) },
    { name: "without fetches and stores", isWhole: false, text: edit(text, [NEXT, ""], [PLACE, ""]) },
    {
      name: "without barriers",
      isWhole: false,
      text: edit(
        text,
        [/(k \+= DEPTH\) \{)\n {4}workgroupBarrier\(\);/, "$1"],
        [/\n {4}workgroupBarrier\(\);\n {4}let next/, "\n    let next"],
      ),
    },
    { name: "fragments loaded once", isWhole: false, text: fragmentsOnce(text) },
    {
      name: "fragments loaded once, no fetches or stores",
      isWhole: false,
      text: fragmentsOnce(edit(text, [NEXT, ""], [PLACE, ""])),
    },
  ];
}
