// @ts-check
// Runs and times your own WGSL kernel, after comparing its result with plain JavaScript.
//
//   npm run build && node examples/custom-kernel.mjs
//
// Needs a WebGPU adapter; a software driver is enough (`npx sidenet doctor` says what is missing).

import { Random } from "@sidenet/tensor";
import { openNodeWebGpu, releaseDawn } from "@sidenet/tensor/node";

const [ROWS, COLUMNS] = [512, 1024];
const EPS = 1e-5;

// One workgroup per row: y = x / ‖x‖. The parameters are in the struct Params, at most 16 scalars; bindings are set by name.
// A grid of more than 65,535 workgroups is spread over two axes, so the row's index is computed from both and checked.
const SOURCE = `// unitRows: y[n,c] = x[n,c] / √(Σ_c x² + eps)
requires immediate_address_space;

const LANES: u32 = 64;

struct Params { rows: u32, columns: u32, eps: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

var<workgroup> partial: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.rows) { return; }
  let at = row * p.columns;
  var sum = 0.0;
  for (var c = lane; c < p.columns; c += LANES) { sum += x[at + c] * x[at + c]; }
  partial[lane] = sum;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { partial[lane] += partial[lane + stride]; }
    workgroupBarrier();
  }
  let scale = inverseSqrt(partial[0] + p.eps);
  for (var c = lane; c < p.columns; c += LANES) { y[at + c] = x[at + c] * scale; }
}
`;

/** @param {Float32Array} x */
function reference(x) {
  const y = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += COLUMNS) {
    let sum = EPS;
    for (let c = 0; c < COLUMNS; c++) sum += x[at + c] ** 2;
    for (let c = 0; c < COLUMNS; c++) y[at + c] = x[at + c] / Math.sqrt(sum);
  }
  return y;
}

const device = await openNodeWebGpu();
device.addKernel("unit-rows", SOURCE);
const values = new Random(1).normals(ROWS * COLUMNS);
const x = device.tensor(values, [ROWS, COLUMNS]);
const y = device.empty([ROWS, COLUMNS]);

const run = (lanes = 64) =>
  device.dispatch("unit-rows/main", {
    bind: { x, y },
    params: { rows: ROWS, columns: COLUMNS, eps: EPS },
    grid: ROWS,
    consts: { LANES: lanes },
  });

/** @param {number} lanes */
async function largestError(lanes) {
  run(lanes);
  const [found, wanted] = [await y.read(), reference(values)];
  return wanted.reduce((worst, value, i) => Math.max(worst, Math.abs(Number(found[i]) - value)), 0);
}

/** Milliseconds of a dispatch in the fastest of 5 batches: other load only slows one down. @param {number} lanes */
async function time(lanes, dispatches = 20) {
  let least = Number.POSITIVE_INFINITY;
  for (let batch = 0; batch < 5; batch++) {
    const start = performance.now();
    for (let i = 0; i < dispatches; i++) run(lanes);
    await device.synchronize();
    least = Math.min(least, (performance.now() - start) / dispatches);
  }
  return least;
}

console.log(`${device.label}: unit-rows of ${ROWS} x ${COLUMNS}`);
for (const lanes of [32, 64, 128]) {
  const error = await largestError(lanes);
  if (!(error < 1e-6)) throw new Error(`${lanes} lanes: the result is off by ${error}.`);
  const ms = await time(lanes);
  const rate = (2 * 4 * x.size) / ms / 1e6;
  console.log(
    `${lanes} lanes: off by at most ${error.toExponential(1)}; ${ms.toFixed(3)} ms, ${rate.toFixed(1)} GB/s`,
  );
}

x.dispose();
y.dispose();
device.dispose();
releaseDawn();
