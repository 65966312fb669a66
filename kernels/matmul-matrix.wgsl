// matmul on subgroup matrices (tensor cores on NVIDIA): y[m,n] = scale[m] · Σ_k a·b (+ bias[n]) (+ y[m,n]), a[M,K], forms
//   nt: b[N,K]   nn: b[K,N]   in a b (both f16) scales[M] bias[N]   out y[M,N]; offsets and strides as in matmul-tile
//   K and all of a are multiples of 8, and in nn so is N; N is a multiple of 4
//   with split-K y is partial sums [splits,M,N] over `splitDepth` of k each, with scales applied; matmul-split-k adds them
//   grid: one workgroup of four subgroups of 32 per block of 128 x 128 and split; a subgroup computes 64 x 64 of the block
//   why: one instruction multiplies 16 x 16 x 16, and 64 x 64 takes 8 loads from workgroup memory for 16 of them. Operands are
//   staged there in strips of 16 rows of a, and 16 rows or columns of b, each an array of its own: Dawn checks the bounds of
//   every load, and the driver can only fold that away, and read whole rows at once, if a load begins at a constant of its
//   array. Rows are padded so that 16 of them lie on different banks; the next strips are fetched while these are multiplied.
//   Results pass through the strips too, since the layout of a subgroup matrix is opaque and edges, scales and bias need single
//   elements: with an array of their own the same multiplications take 1.7 times as long (NVIDIA H200)
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
const STRIPS: u32 = BLOCK / 16; // of each operand
const STEP_K: u32 = DEPTH / 8 + 1; // vectors from row to row of [16][k], with one of padding
const STEP_N: u32 = 2 + 1; // the same of [k][16]
const STEP_Y: u32 = 4 + 1; // and of 16 x 16 results
const STRIP: u32 = 16 * STEP_K; // vectors of a strip
// FORM=1: const STRIP: u32 = DEPTH * STEP_N; // enough for the others too

alias a_v = vec4<u32>; // a f16: alias a_v = vec4<u32>; // the bits of eight values
alias b_v = vec4<u32>; // b f16: alias b_v = vec4<u32>;
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

var<workgroup> strips: array<array<vec4<u32>, STRIP>, 2 * STRIPS>; // of a: [16][k]; then of b: nt [16][k], nn [k][16]

/// Vector i of the four of a that thread t stages: eight values along k. Zero past the end of k; rows past the end repeat the last.
fn fetchA(row: u32, k0: u32, t: u32, i: u32) -> vec4<u32> {
  let m = min(row + t / 4 + 32 * i, p.m - 1);
  let k = k0 + t % 4 * 8;
  return select(vec4<u32>(), a[(p.aAt + m * p.aRow + min(k, p.k - 8)) / 8], k < p.k);
}

/// The same of b: nt, along k; nn, along n.
fn fetchB(col: u32, k0: u32, t: u32, i: u32) -> vec4<u32> {
  if (FORM == NT) {
    let n = min(col + t / 4 + 32 * i, p.n - 1);
    let k = k0 + t % 4 * 8;
    return select(vec4<u32>(), b[(n * p.k + min(k, p.k - 8)) / 8], k < p.k);
  }
  let n = min(col + t % 16 * 8, p.n - 8);
  let k = k0 + t / 16 + 8 * i;
  return select(vec4<u32>(), b[(min(k, p.k - 1) * p.n + n) / 8], k < p.k);
}

fn stageA(t: u32, i: u32, v: vec4<u32>) { strips[t / 64 + 2 * i][t / 4 % 16 * STEP_K + t % 4] = v; }

fn stageB(t: u32, i: u32, v: vec4<u32>) {
  if (FORM == NT) { strips[STRIPS + t / 64 + 2 * i][t / 4 % 16 * STEP_K + t % 4] = v; }
  else { strips[STRIPS + t % 16 / 2][(t / 16 + 8 * i) * STEP_N + t % 2] = v; }
}

/// Writes a subgroup's 16 x 16 results, which lie in the strip of its number, to y of a split, from `row` and `col` on.
fn write(subgroup: u32, lane: u32, split: u32, row: u32, col: u32) {
  for (var i = lane; i < 64; i += 32) {
    let m = row + i / 4;
    let n = col + i % 4 * 4;
    if (m >= p.m || n >= p.n) { continue; }
    var v = bitcast<vec4<f32>>(strips[subgroup][i / 4 * STEP_Y + i % 4]);
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

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
  let rows = (p.m + BLOCK - 1) / BLOCK; let cols = (p.n + BLOCK - 1) / BLOCK;
  let block = wg.x + wg.y * nwg.x; // row blocks first: blocks with the same columns of b run close together
  let row = block % rows * BLOCK; let col = block / rows % cols * BLOCK; let split = block / rows / cols;
  if (split >= p.splits) { return; }
  let start = split * p.splitDepth; let end = min(start + p.splitDepth, p.k);
  let sa = subgroup / 2 * 4; let sb = STRIPS + subgroup % 2 * 4; // the first of four strips of a, and of b
  var c00 = Sum(); var c01 = Sum(); var c02 = Sum(); var c03 = Sum(); var c10 = Sum(); var c11 = Sum(); var c12 = Sum(); var c13 = Sum();
  var c20 = Sum(); var c21 = Sum(); var c22 = Sum(); var c23 = Sum(); var c30 = Sum(); var c31 = Sum(); var c32 = Sum(); var c33 = Sum();
  var a0 = fetchA(row, start, t, 0); var a1 = fetchA(row, start, t, 1); var a2 = fetchA(row, start, t, 2); var a3 = fetchA(row, start, t, 3);
  var b0 = fetchB(col, start, t, 0); var b1 = fetchB(col, start, t, 1); var b2 = fetchB(col, start, t, 2); var b3 = fetchB(col, start, t, 3);
  for (var k = start; k < end; k += DEPTH) {
    workgroupBarrier();
    stageA(t, 0, a0); stageA(t, 1, a1); stageA(t, 2, a2); stageA(t, 3, a3);
    stageB(t, 0, b0); stageB(t, 1, b1); stageB(t, 2, b2); stageB(t, 3, b3);
    workgroupBarrier();
    a0 = fetchA(row, k + DEPTH, t, 0); a1 = fetchA(row, k + DEPTH, t, 1); a2 = fetchA(row, k + DEPTH, t, 2); a3 = fetchA(row, k + DEPTH, t, 3);
    b0 = fetchB(col, k + DEPTH, t, 0); b1 = fetchB(col, k + DEPTH, t, 1); b2 = fetchB(col, k + DEPTH, t, 2); b3 = fetchB(col, k + DEPTH, t, 3);
    for (var q = 0u; q < DEPTH; q += 16) {
      let l0 = subgroupMatrixLoad<Left, row_major>(&strips[sa], q / 8, STEP_K); let l1 = subgroupMatrixLoad<Left, row_major>(&strips[sa + 1], q / 8, STEP_K);
      let l2 = subgroupMatrixLoad<Left, row_major>(&strips[sa + 2], q / 8, STEP_K); let l3 = subgroupMatrixLoad<Left, row_major>(&strips[sa + 3], q / 8, STEP_K);
      let r0 = subgroupMatrixLoad<Right, col_major>(&strips[sb], q / 8, STEP_K);
      // FORM=1: let r0 = subgroupMatrixLoad<Right, row_major>(&strips[sb], q * STEP_N, STEP_N);
      let r1 = subgroupMatrixLoad<Right, col_major>(&strips[sb + 1], q / 8, STEP_K);
      // FORM=1: let r1 = subgroupMatrixLoad<Right, row_major>(&strips[sb + 1], q * STEP_N, STEP_N);
      let r2 = subgroupMatrixLoad<Right, col_major>(&strips[sb + 2], q / 8, STEP_K);
      // FORM=1: let r2 = subgroupMatrixLoad<Right, row_major>(&strips[sb + 2], q * STEP_N, STEP_N);
      let r3 = subgroupMatrixLoad<Right, col_major>(&strips[sb + 3], q / 8, STEP_K);
      // FORM=1: let r3 = subgroupMatrixLoad<Right, row_major>(&strips[sb + 3], q * STEP_N, STEP_N);
      c00 = subgroupMatrixMultiplyAccumulate(l0, r0, c00); c01 = subgroupMatrixMultiplyAccumulate(l0, r1, c01);
      c02 = subgroupMatrixMultiplyAccumulate(l0, r2, c02); c03 = subgroupMatrixMultiplyAccumulate(l0, r3, c03);
      c10 = subgroupMatrixMultiplyAccumulate(l1, r0, c10); c11 = subgroupMatrixMultiplyAccumulate(l1, r1, c11);
      c12 = subgroupMatrixMultiplyAccumulate(l1, r2, c12); c13 = subgroupMatrixMultiplyAccumulate(l1, r3, c13);
      c20 = subgroupMatrixMultiplyAccumulate(l2, r0, c20); c21 = subgroupMatrixMultiplyAccumulate(l2, r1, c21);
      c22 = subgroupMatrixMultiplyAccumulate(l2, r2, c22); c23 = subgroupMatrixMultiplyAccumulate(l2, r3, c23);
      c30 = subgroupMatrixMultiplyAccumulate(l3, r0, c30); c31 = subgroupMatrixMultiplyAccumulate(l3, r1, c31);
      c32 = subgroupMatrixMultiplyAccumulate(l3, r2, c32); c33 = subgroupMatrixMultiplyAccumulate(l3, r3, c33);
    }
  }
  let m = row + 16 * sa; let n = col + 16 * (sb - STRIPS);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c00, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m, n);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c01, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m, n + 16);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c02, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m, n + 32);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c03, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m, n + 48);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c10, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 16, n);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c11, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 16, n + 16);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c12, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 16, n + 32);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c13, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 16, n + 48);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c20, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 32, n);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c21, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 32, n + 16);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c22, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 32, n + 32);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c23, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 32, n + 48);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c30, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 48, n);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c31, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 48, n + 16);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c32, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 48, n + 32);
  workgroupBarrier(); subgroupMatrixStore<row_major>(&strips[subgroup], 0, c33, STEP_Y); workgroupBarrier(); write(subgroup, lane, split, m + 48, n + 48);
}
