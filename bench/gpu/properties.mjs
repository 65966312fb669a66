// Compares random cases of every op on a device with the reference in double, as the property tests do.
//
//   node bench/gpu/properties.mjs [--dtype f16] [--precision f16] [--cases 40] [--device webgpu] [--only linear,rope]
//
// --precision defaults to --dtype. --dtype f32 --precision f16 tests the kernels that round f32 operands to f16.

import { checkRow, DEFAULT_TILES, opNames, rowOf } from "@sidenet/tensor";
import { checkNames, scriptOptions } from "../../scripts/lib/options.mjs";
import { finish, open } from "./process.mjs";

const options = scriptOptions(
  { device: "webgpu", dtype: "f32", precision: null, cases: 40, only: [] },
  { positive: ["cases"] },
);
const precision = options.precision ?? options.dtype;
checkNames("dtype", [options.dtype], ["f32", "f16"]);
checkNames("precision", [precision], ["f32", "f16"]);
checkNames("only", options.only, opNames);

const device = await open(options.device, { poison: true, precision });
// Run every kernel for subgroup matrices, including those that no default chooses.
if (device.profile.subgroupMatrices) device.retile({ ...DEFAULT_TILES, subgroupMatrixQueries: 16 });
const { only } = options;
const failures = [];
let passed = 0;
for (const name of opNames) {
  if (only.length > 0 && !only.includes(name)) continue;
  const { inputs } = rowOf(name).signature;
  if (!inputs.some(({ dtype, accepts }) => dtype === null && accepts.includes(options.dtype))) {
    if (options.dtype !== "f32") continue;
  }
  try {
    const problem = await checkRow(device, name, options.cases, options.dtype);
    if (problem === null) passed++;
    else failures.push({ name, problem });
  } catch (error) {
    failures.push({ name, problem: String(error?.message ?? error) });
  }
}
for (const { name, problem } of failures) console.error(`FAILED ${name}: ${problem}`);
console.error(
  `${passed} ops passed, ${failures.length} failed (${options.cases} cases each, ${options.dtype})`,
);
finish({ dtype: options.dtype, cases: options.cases, passed, failures }, failures.length > 0 ? 1 : 0);
