// matmul on subgroup matrices (tensor cores on NVIDIA): y[m,n] = scale[m] · Σ_k a·b (+ bias[n]) (+ y[m,n]), a[M,K], forms
//   nt: b[N,K]   nn: b[K,N]   in a b (both f16) scales[M] bias[N]   out y[M,N]; strides as in matmul-tile, multiples of 4
//   with split-K y is partial sums [splits,M,N] over `splitDepth` of k each, with scales applied; matmul-split-k adds them
//   grid: one workgroup of four subgroups of 32 per block of 128 x 128 and split; a subgroup computes 64 x 64 of the block
//   why: one instruction multiplies 16 x 16 x 16, and 64 x 64 takes 8 loads from workgroup memory for 16 of them. Operands are
//   staged there in strips of 16 rows of a, and 16 rows or columns of b, each an array of its own: Dawn checks the bounds of
//   every load, and the driver can only fold that away, and read whole rows at once, if a load begins at a constant of its
//   array. Rows are padded so that 16 of them lie on different banks; the next strips are loaded while these are multiplied.
//   Results pass through workgroup memory too, since the layout of a subgroup matrix is opaque and edges, scales and bias
//   need single elements.
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
const STEP_K: u32 = DEPTH / 4 + 2; // vectors from row to row of [16][k], with two of padding
const STEP_N: u32 = 4 + 2; // the same of [k][16]
const STEP_Y: u32 = 4 + 1; // and of 16 x 16 results

alias a_v = vec4<f16>; // a f16: alias a_v = vec4<f16>;
alias b_v = vec4<f16>; // b f16: alias b_v = vec4<f16>;
alias bias_t = f32;
alias y_v = vec4<f32>;
alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;
alias Four = mat4x4<f16>; // four vectors of a strip each, or of rows of it

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

var<workgroup> strips: array<array<vec4<f16>, DEPTH * STEP_N>, 2 * STRIPS>; // of a [16][k]; of b, nt: [16][k], nn: [k][16]
var<workgroup> results: array<array<vec4<f32>, 16 * STEP_Y>, 4>; // per subgroup

/// Four values along k of a row of a; zero past the end of k; rows past the end repeat the last.
fn ofA(m: u32, k: u32) -> vec4<f16> {
  return select(vec4<f16>(), a[(p.aAt + min(m, p.m - 1) * p.aRow + min(k, p.k - 4)) / 4], k < p.k);
}

/// Of four strips of a from `row` on, the vector that thread t stages.
fn fetchA(row: u32, k0: u32, t: u32) -> Four {
  let m = row + t / 8;
  let k = k0 + t % 8 * 4;
  return Four(ofA(m, k), ofA(m + 16, k), ofA(m + 32, k), ofA(m + 48, k));
}

/// Four values of b: nt, along k of row n; nn, along n of row k.
fn ofB(n: u32, k: u32) -> vec4<f16> {
  var i = min(n, p.n - 1) * p.k + min(k, p.k - 4);
  if (FORM == NN) { i = min(k, p.k - 1) * p.n + min(n, p.n - 4); }
  return select(vec4<f16>(), b[i / 4], k < p.k);
}

/// nt: of four strips of b, from strip 4 · half on; nn: of one strip, four rows of k from 16 · half on.
fn fetchB(col: u32, k0: u32, t: u32, half: u32) -> Four {
  if (FORM == NT) {
    let n = col + 64 * half + t / 8;
    let k = k0 + t % 8 * 4;
    return Four(ofB(n, k), ofB(n + 16, k), ofB(n + 32, k), ofB(n + 48, k));
  }
  let n = col + t % 32 * 4;
  let k = k0 + 16 * half + t / 32;
  return Four(ofB(n, k), ofB(n, k + 4), ofB(n, k + 8), ofB(n, k + 12));
}

/// Stages what a thread fetched of four strips from `first` on.
fn stage(first: u32, t: u32, f: Four) {
  let i = t / 8 * STEP_K + t % 8;
  strips[first][i] = f[0]; strips[first + 1][i] = f[1]; strips[first + 2][i] = f[2]; strips[first + 3][i] = f[3];
}

fn stageB(t: u32, half: u32, f: Four) {
  if (FORM == NT) { stage(STRIPS + 4 * half, t, f); return; }
  let strip = STRIPS + t % 32 / 4;
  let i = (16 * half + t / 32) * STEP_N + t % 4;
  strips[strip][i] = f[0]; strips[strip][i + 4 * STEP_N] = f[1]; strips[strip][i + 8 * STEP_N] = f[2]; strips[strip][i + 12 * STEP_N] = f[3];
}

fn loadA(strip: u32, k: u32) -> Left { return subgroupMatrixLoad<Left, row_major>(&strips[strip], k / 4, STEP_K); }

fn loadB(strip: u32, k: u32) -> Right {
  if (FORM == NT) { return subgroupMatrixLoad<Right, col_major>(&strips[strip], k / 4, STEP_K); }
  return subgroupMatrixLoad<Right, row_major>(&strips[strip], k * STEP_N, STEP_N);
}

/// Writes 16 x 16 results to y of a split, by way of workgroup memory.
fn store(c: Sum, subgroup: u32, lane: u32, split: u32, row: u32, col: u32) {
  workgroupBarrier();
  subgroupMatrixStore<row_major>(&results[subgroup], 0, c, STEP_Y);
  workgroupBarrier();
  for (var i = lane; i < 64; i += 32) {
    let m = row + i / 4;
    let n = col + i % 4 * 4;
    if (m >= p.m || n >= p.n) { continue; }
    var v = results[subgroup][i / 4 * STEP_Y + i % 4];
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
  let rows = (p.m + BLOCK - 1) / BLOCK;
  let block = wg.x + wg.y * nwg.x; // row blocks first: blocks with the same columns of b run close together
  let row = block % rows * BLOCK;
  let cols = (p.n + BLOCK - 1) / BLOCK;
  let col = block / rows % cols * BLOCK;
  let split = block / rows / cols;
  if (split >= p.splits) { return; }
  let start = split * p.splitDepth;
  let end = min(start + p.splitDepth, p.k);
  let sa = subgroup / 2 * 4; // the first of four strips of a
  let sb = STRIPS + subgroup % 2 * 4;
  var c00 = Sum(); var c01 = Sum(); var c02 = Sum(); var c03 = Sum();
  var c10 = Sum(); var c11 = Sum(); var c12 = Sum(); var c13 = Sum();
  var c20 = Sum(); var c21 = Sum(); var c22 = Sum(); var c23 = Sum();
  var c30 = Sum(); var c31 = Sum(); var c32 = Sum(); var c33 = Sum();
  var a0 = fetchA(row, start, t); var a1 = fetchA(row + 64, start, t);
  var b0 = fetchB(col, start, t, 0); var b1 = fetchB(col, start, t, 1);
  for (var k = start; k < end; k += DEPTH) {
    workgroupBarrier();
    stage(0, t, a0); stage(4, t, a1);
    stageB(t, 0, b0); stageB(t, 1, b1);
    workgroupBarrier();
    let next = k + DEPTH;
    a0 = fetchA(row, next, t); a1 = fetchA(row + 64, next, t);
    b0 = fetchB(col, next, t, 0); b1 = fetchB(col, next, t, 1);
    for (var q = 0u; q < DEPTH; q += 16) {
      let l0 = loadA(sa, q);
      let l1 = loadA(sa + 1, q);
      let l2 = loadA(sa + 2, q);
      let l3 = loadA(sa + 3, q);
      let r0 = loadB(sb, q);
      c00 = subgroupMatrixMultiplyAccumulate(l0, r0, c00); c10 = subgroupMatrixMultiplyAccumulate(l1, r0, c10);
      c20 = subgroupMatrixMultiplyAccumulate(l2, r0, c20); c30 = subgroupMatrixMultiplyAccumulate(l3, r0, c30);
      let r1 = loadB(sb + 1, q);
      c01 = subgroupMatrixMultiplyAccumulate(l0, r1, c01); c11 = subgroupMatrixMultiplyAccumulate(l1, r1, c11);
      c21 = subgroupMatrixMultiplyAccumulate(l2, r1, c21); c31 = subgroupMatrixMultiplyAccumulate(l3, r1, c31);
      let r2 = loadB(sb + 2, q);
      c02 = subgroupMatrixMultiplyAccumulate(l0, r2, c02); c12 = subgroupMatrixMultiplyAccumulate(l1, r2, c12);
      c22 = subgroupMatrixMultiplyAccumulate(l2, r2, c22); c32 = subgroupMatrixMultiplyAccumulate(l3, r2, c32);
      let r3 = loadB(sb + 3, q);
      c03 = subgroupMatrixMultiplyAccumulate(l0, r3, c03); c13 = subgroupMatrixMultiplyAccumulate(l1, r3, c13);
      c23 = subgroupMatrixMultiplyAccumulate(l2, r3, c23); c33 = subgroupMatrixMultiplyAccumulate(l3, r3, c33);
    }
  }
  let m = row + 16 * sa;
  let n = col + 16 * (sb - STRIPS);
  store(c00, subgroup, lane, split, m, n); store(c01, subgroup, lane, split, m, n + 16);
  store(c02, subgroup, lane, split, m, n + 32); store(c03, subgroup, lane, split, m, n + 48);
  store(c10, subgroup, lane, split, m + 16, n); store(c11, subgroup, lane, split, m + 16, n + 16);
  store(c12, subgroup, lane, split, m + 16, n + 32); store(c13, subgroup, lane, split, m + 16, n + 48);
  store(c20, subgroup, lane, split, m + 32, n); store(c21, subgroup, lane, split, m + 32, n + 16);
  store(c22, subgroup, lane, split, m + 32, n + 32); store(c23, subgroup, lane, split, m + 32, n + 48);
  store(c30, subgroup, lane, split, m + 48, n); store(c31, subgroup, lane, split, m + 48, n + 16);
  store(c32, subgroup, lane, split, m + 48, n + 32); store(c33, subgroup, lane, split, m + 48, n + 48);
}
