// matmul on subgroup matrices (tensor cores on NVIDIA): y[m,n] = scale[m] · Σ_k a·b (+ bias[n]) (+ y[m,n]), a[M,K], forms
//   nt: b[N,K]   nn: b[K,N]   in a b (both f16) scales[M] bias[N]   out y[M,N]; strides as in matmul-tile, multiples of 4
//   with split-K y is partial sums [splits,M,N] over `splitDepth` of k each, with scales applied; matmul-split-k adds them
//   grid: one workgroup of eight subgroups of 32 per block of 128 x 128 and split; a subgroup computes 64 x 32 of the block
//   why: one instruction multiplies 16 x 16 x 16. Blocks are staged in workgroup memory, with rows padded so that 16 of them
//   lie on different banks; the next block of k is loaded while this one is multiplied. Results pass through workgroup
//   memory too, since the layout of a subgroup matrix is opaque and edges, scales and bias need single elements.
//   numerics: products of f16 values are exact, sums are f32
diagnostic(off, chromium.subgroup_matrix_uniformity);
enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
requires immediate_address_space;

const FORM: u32 = 0; // NT or NN
const NT: u32 = 0;
const NN: u32 = 1;
const BLOCK: u32 = 128;
const DEPTH: u32 = 32; // of k per step
const STEP_K: u32 = DEPTH / 4 + 2; // vectors from row to row of [..][k], with two of padding
const STEP_N: u32 = BLOCK / 4 + 2; // the same of [k][n]
const STEP_Y: u32 = 9; // vectors from row to row of results: 32 values and padding

alias a_v = vec4<f16>; // a f16: alias a_v = vec4<f16>;
alias b_v = vec4<f16>; // b f16: alias b_v = vec4<f16>;
alias bias_t = f32;
alias y_v = vec4<f32>;
alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;

struct Params {
  m: u32, n: u32, k: u32, aAt: u32, aRow: u32, yAt: u32, yRow: u32, accumulate: u32, hasBias: u32, hasScales: u32,
  splits: u32, splitDepth: u32 // splitDepth is a multiple of DEPTH if splits > 1
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_v>;
@group(0) @binding(1) var<storage, read> b: array<b_v>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<bias_t>;
@group(0) @binding(4) var<storage, read_write> y: array<y_v>;

var<workgroup> blockA: array<vec4<f16>, BLOCK * STEP_K>; // [m][k]
var<workgroup> blockB: array<vec4<f16>, BLOCK * STEP_K>; // nt: [n][k]; nn: [k][n]
var<workgroup> results: array<vec4<f32>, 8 * 16 * STEP_Y>; // per subgroup 16 rows of 32

/// Vector i of 1024 of the block of a at `row` and k0; zero past the end of k; rows past the end repeat the last.
fn fetchA(row: u32, k0: u32, i: u32) -> vec4<f16> {
  let m = min(row + i / 8, p.m - 1);
  let k = k0 + i % 8 * 4;
  return select(vec4<f16>(), a[(p.aAt + m * p.aRow + min(k, p.k - 4)) / 4], k < p.k);
}

fn fetchB(col: u32, k0: u32, i: u32) -> vec4<f16> {
  if (FORM == NT) {
    let n = min(col + i / 8, p.n - 1);
    let k = k0 + i % 8 * 4;
    return select(vec4<f16>(), b[(n * p.k + min(k, p.k - 4)) / 4], k < p.k);
  }
  let n = min(col + i % 32 * 4, p.n - 4);
  let k = k0 + i / 32;
  return select(vec4<f16>(), b[(min(k, p.k - 1) * p.n + n) / 4], k < p.k);
}

fn placeB(i: u32) -> u32 {
  if (FORM == NT) { return i / 8 * STEP_K + i % 8; }
  return i / 32 * STEP_N + i % 32;
}

fn loadA(row: u32, k: u32) -> Left {
  return subgroupMatrixLoad<Left, row_major>(&blockA, row * STEP_K + k / 4, STEP_K);
}

fn loadB(col: u32, k: u32) -> Right {
  if (FORM == NT) { return subgroupMatrixLoad<Right, col_major>(&blockB, col * STEP_K + k / 4, STEP_K); }
  return subgroupMatrixLoad<Right, row_major>(&blockB, k * STEP_N + col / 4, STEP_N);
}

/// Writes a subgroup's 16 rows of 32 from `results` to y of a split, from `row` and `col` on.
fn store(subgroup: u32, lane: u32, split: u32, row: u32, col: u32) {
  for (var i = lane; i < 128; i += 32) {
    let m = row + i / 8;
    let n = col + i % 8 * 4;
    if (m >= p.m || n >= p.n) { continue; }
    var v = results[(subgroup * 16 + i / 8) * STEP_Y + i % 8];
    if (p.hasScales != 0) { v *= scales[m]; }
    if (p.hasBias != 0) {
      let at = p.yAt + n;
      v += vec4(f32(bias[at]), f32(bias[at + 1]), f32(bias[at + 2]), f32(bias[at + 3]));
    }
    let to = (split * p.m * p.n + p.yAt + m * p.yRow + n) / 4;
    if (p.accumulate != 0) { v += vec4<f32>(y[to]); }
    y[to] = y_v(v);
  }
}

/// Writes two adjacent 16 x 16 results to y by way of workgroup memory.
fn flush(c0: Sum, c1: Sum, subgroup: u32, lane: u32, split: u32, at: vec2<u32>) {
  let y0 = subgroup * 16 * STEP_Y;
  workgroupBarrier();
  subgroupMatrixStore<row_major>(&results, y0, c0, STEP_Y);
  subgroupMatrixStore<row_major>(&results, y0 + 4, c1, STEP_Y);
  workgroupBarrier();
  store(subgroup, lane, split, at.x, at.y);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
  let rows = (p.m + BLOCK - 1) / BLOCK;
  let block = wg.x + wg.y * nwg.x; // row blocks first: blocks with the same columns of b run close together
  let row = block % rows * BLOCK;
  let cols = (p.n + BLOCK - 1) / BLOCK;
  let col = block / rows % cols * BLOCK;
  let split = block / rows / cols;
  if (split >= p.splits) { return; }
  let start = split * p.splitDepth;
  let end = min(start + p.splitDepth, p.k);
  let sm = subgroup / 4 * 64;
  let sn = subgroup % 4 * 32;
  var c00 = Sum(); var c10 = Sum(); var c20 = Sum(); var c30 = Sum();
  var c01 = Sum(); var c11 = Sum(); var c21 = Sum(); var c31 = Sum();
  var fa0 = fetchA(row, start, t); var fa1 = fetchA(row, start, t + 256);
  var fa2 = fetchA(row, start, t + 512); var fa3 = fetchA(row, start, t + 768);
  var fb0 = fetchB(col, start, t); var fb1 = fetchB(col, start, t + 256);
  var fb2 = fetchB(col, start, t + 512); var fb3 = fetchB(col, start, t + 768);
  let to = t / 8 * STEP_K + t % 8; // 256 vectors on are 32 rows on
  for (var k = start; k < end; k += DEPTH) {
    workgroupBarrier();
    blockA[to] = fa0; blockA[to + 32 * STEP_K] = fa1; blockA[to + 64 * STEP_K] = fa2; blockA[to + 96 * STEP_K] = fa3;
    blockB[placeB(t)] = fb0; blockB[placeB(t + 256)] = fb1;
    blockB[placeB(t + 512)] = fb2; blockB[placeB(t + 768)] = fb3;
    workgroupBarrier();
    let next = k + DEPTH;
    fa0 = fetchA(row, next, t); fa1 = fetchA(row, next, t + 256);
    fa2 = fetchA(row, next, t + 512); fa3 = fetchA(row, next, t + 768);
    fb0 = fetchB(col, next, t); fb1 = fetchB(col, next, t + 256);
    fb2 = fetchB(col, next, t + 512); fb3 = fetchB(col, next, t + 768);
    for (var q = 0u; q < DEPTH; q += 16) {
      let b0 = loadB(sn, q);
      let b1 = loadB(sn + 16, q);
      let a0 = loadA(sm, q);
      c00 = subgroupMatrixMultiplyAccumulate(a0, b0, c00);
      c01 = subgroupMatrixMultiplyAccumulate(a0, b1, c01);
      let a1 = loadA(sm + 16, q);
      c10 = subgroupMatrixMultiplyAccumulate(a1, b0, c10);
      c11 = subgroupMatrixMultiplyAccumulate(a1, b1, c11);
      let a2 = loadA(sm + 32, q);
      c20 = subgroupMatrixMultiplyAccumulate(a2, b0, c20);
      c21 = subgroupMatrixMultiplyAccumulate(a2, b1, c21);
      let a3 = loadA(sm + 48, q);
      c30 = subgroupMatrixMultiplyAccumulate(a3, b0, c30);
      c31 = subgroupMatrixMultiplyAccumulate(a3, b1, c31);
    }
  }
  let at = vec2(row + sm, col + sn);
  flush(c00, c01, subgroup, lane, split, at);
  flush(c10, c11, subgroup, lane, split, at + vec2(16, 0));
  flush(c20, c21, subgroup, lane, split, at + vec2(32, 0));
  flush(c30, c31, subgroup, lane, split, at + vec2(48, 0));
}
