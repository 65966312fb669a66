// matmul for GPUs where extents are multiples of 4: y[m,n] = Σ_k a·b (+ bias[n]) (+ y[m,n]), forms and strides of matmul-tile
//   in a b bias[N]   out y[M,N]; with split-K partial sums [splits,batches,M,N] over `splitDepth` of k each, which
//   matmul-split-k adds
//   grid: one workgroup per block of BLOCK x BLOCK and split, 8 x 8 values per thread
//   why: 64 multiply-adds per four vectors from workgroup memory. Operands are read as vectors along the axis that is
//   innermost in memory, transposed in registers where that is k, and staged as [k][four of m or n]. The next block of k is
//   loaded while this one is multiplied.
//   numerics: sums are f32 for every element type, over k in order
requires immediate_address_space;

const FORM: u32 = 0; // NT, NN or TN
const NT: u32 = 0;
const NN: u32 = 1;
const TN: u32 = 2;
const BLOCK: u32 = 128; // or 64, where blocks of 128 would be too few for the GPU
const SIDE: u32 = BLOCK / 8; // threads along either axis
const THREADS: u32 = SIDE * SIDE;
const DEPTH: u32 = 16; // of k at a time
const STEP: u32 = BLOCK / 4 + 1; // vectors from one k to the next, with one of padding against bank conflicts

alias a_v = vec4<f32>;
alias b_v = vec4<f32>;
alias bias_t = f32;
alias y_v = vec4<f32>;

struct Params {
  batches: u32, m: u32, n: u32, k: u32, aAt: u32, aRow: u32, yAt: u32, yRow: u32,
  accumulate: u32, hasBias: u32, splits: u32, splitDepth: u32 // splitDepth is a multiple of DEPTH if splits > 1
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_v>;
@group(0) @binding(1) var<storage, read> b: array<b_v>;
@group(0) @binding(2) var<storage, read> bias: array<bias_t>;
@group(0) @binding(3) var<storage, read_write> y: array<y_v>;

var<workgroup> blockA: array<vec4<f32>, DEPTH * STEP>;
var<workgroup> blockB: array<vec4<f32>, DEPTH * STEP>;

/// A block of y: its batch, the index of its matrix [m,n] over all splits and batches, and its first row and column.
struct Place { batch: u32, matrix: u32, row: u32, col: u32 }

/// a[m,k] for four m and four k, as four vectors of m. Zero past the end of k; rows past the end repeat the last and are not stored.
fn alongK_A(at: Place, i: u32, k0: u32) -> mat4x4<f32> {
  let k = k0 + i % 4 * 4;
  let first = at.batch * p.m * p.k + p.aAt + min(k, p.k - 4);
  let m = at.row + i / 4 * 4;
  let last = p.m - 1;
  let v = mat4x4(vec4<f32>(a[(first + min(m, last) * p.aRow) / 4]), vec4<f32>(a[(first + min(m + 1, last) * p.aRow) / 4]),
                 vec4<f32>(a[(first + min(m + 2, last) * p.aRow) / 4]), vec4<f32>(a[(first + min(m + 3, last) * p.aRow) / 4]));
  if (k >= p.k) { return mat4x4<f32>(); }
  return transpose(v);
}

/// The same for form tn, where a is stored [k,m].
fn alongM_A(at: Place, i: u32, k0: u32) -> mat4x4<f32> {
  let k = k0 + i / (BLOCK / 4) * 4;
  let first = at.batch * p.m * p.k + p.aAt + min(at.row + i % (BLOCK / 4) * 4, p.m - 4);
  let last = p.k - 1;
  let v = mat4x4(vec4<f32>(a[(first + min(k, last) * p.aRow) / 4]), vec4<f32>(a[(first + min(k + 1, last) * p.aRow) / 4]),
                 vec4<f32>(a[(first + min(k + 2, last) * p.aRow) / 4]), vec4<f32>(a[(first + min(k + 3, last) * p.aRow) / 4]));
  return inK(v, k);
}

/// Sets the vectors of k past the end to zero.
fn inK(v: mat4x4<f32>, k: u32) -> mat4x4<f32> {
  let none = vec4<f32>();
  return mat4x4(select(none, v[0], k < p.k), select(none, v[1], k + 1 < p.k),
                select(none, v[2], k + 2 < p.k), select(none, v[3], k + 3 < p.k));
}

fn alongK_B(at: Place, i: u32, k0: u32) -> mat4x4<f32> {
  let k = k0 + i % 4 * 4;
  let first = at.batch * p.n * p.k + min(k, p.k - 4);
  let n = min(at.col + i / 4 * 4, p.n - 4);
  let v = mat4x4(vec4<f32>(b[(first + n * p.k) / 4]), vec4<f32>(b[(first + (n + 1) * p.k) / 4]),
                 vec4<f32>(b[(first + (n + 2) * p.k) / 4]), vec4<f32>(b[(first + (n + 3) * p.k) / 4]));
  if (k >= p.k) { return mat4x4<f32>(); }
  return transpose(v);
}

fn alongN_B(at: Place, i: u32, k0: u32) -> mat4x4<f32> {
  let k = k0 + i / (BLOCK / 4) * 4;
  let first = at.batch * p.n * p.k + min(at.col + i % (BLOCK / 4) * 4, p.n - 4);
  let last = p.k - 1;
  let v = mat4x4(vec4<f32>(b[(first + min(k, last) * p.n) / 4]), vec4<f32>(b[(first + min(k + 1, last) * p.n) / 4]),
                 vec4<f32>(b[(first + min(k + 2, last) * p.n) / 4]), vec4<f32>(b[(first + min(k + 3, last) * p.n) / 4]));
  return inK(v, k);
}

/// Load i of 2 · BLOCK: the loads of a, then those of b.
fn fetch(at: Place, i: u32, k0: u32) -> mat4x4<f32> {
  if (i < BLOCK) {
    if (FORM == TN) { return alongM_A(at, i, k0); }
    return alongK_A(at, i, k0);
  }
  if (FORM == NT) { return alongK_B(at, i - BLOCK, k0); }
  return alongN_B(at, i - BLOCK, k0);
}

fn keep(i: u32, v: mat4x4<f32>) {
  if (i < BLOCK) {
    var to = i % 4 * 4 * STEP + i / 4;
    if (FORM == TN) { to = i / (BLOCK / 4) * 4 * STEP + i % (BLOCK / 4); }
    blockA[to] = v[0]; blockA[to + STEP] = v[1]; blockA[to + 2 * STEP] = v[2]; blockA[to + 3 * STEP] = v[3];
  } else {
    let j = i - BLOCK;
    var to = j / (BLOCK / 4) * 4 * STEP + j % (BLOCK / 4);
    if (FORM == NT) { to = j % 4 * 4 * STEP + j / 4; }
    blockB[to] = v[0]; blockB[to + STEP] = v[1]; blockB[to + 2 * STEP] = v[2]; blockB[to + 3 * STEP] = v[3];
  }
}

fn mad(sum: mat4x4<f32>, s: vec4<f32>, v: vec4<f32>) -> mat4x4<f32> {
  return mat4x4(fma(vec4(s.x), v, sum[0]), fma(vec4(s.y), v, sum[1]),
                fma(vec4(s.z), v, sum[2]), fma(vec4(s.w), v, sum[3]));
}

/// Stores four rows of four columns.
fn store(sums: mat4x4<f32>, at: Place, row: u32, col: u32) {
  if (col >= p.n) { return; }
  var sum = sums;
  var add = vec4<f32>();
  if (p.hasBias != 0) {
    let i = p.yAt + col;
    add = vec4(f32(bias[i]), f32(bias[i + 1]), f32(bias[i + 2]), f32(bias[i + 3]));
  }
  for (var j = 0u; j < 4; j++) {
    if (row + j >= p.m) { break; }
    let i = (at.matrix * p.m * p.n + p.yAt + (row + j) * p.yRow + col) / 4;
    var v = sum[j] + add;
    if (p.accumulate != 0) { v += vec4<f32>(y[i]); }
    y[i] = y_v(v);
  }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
  let rows = (p.m + BLOCK - 1) / BLOCK;
  let cols = (p.n + BLOCK - 1) / BLOCK;
  let block = wg.x + wg.y * nwg.x; // row blocks first: blocks with the same columns of b run close together
  let matrix = block / (rows * cols);
  if (matrix >= p.splits * p.batches) { return; }
  let at = Place(matrix % p.batches, matrix, block % rows * BLOCK, block / rows % cols * BLOCK);
  let start = matrix / p.batches * p.splitDepth; // of this split
  let end = min(start + p.splitDepth, p.k);
  let ty = t / SIDE;
  let tx = t % SIDE;
  var c00: mat4x4<f32>;
  var c01: mat4x4<f32>;
  var c10: mat4x4<f32>;
  var c11: mat4x4<f32>;
  var f0 = mat4x4<f32>();
  var f1 = mat4x4<f32>();
  if (start < end) {
    f0 = fetch(at, t, start);
    if (THREADS < 2 * BLOCK) { f1 = fetch(at, t + THREADS, start); }
  }
  for (var k = start; k < end; k += DEPTH) {
    workgroupBarrier();
    keep(t, f0);
    if (THREADS < 2 * BLOCK) { keep(t + THREADS, f1); }
    workgroupBarrier();
    if (k + DEPTH < end) {
      f0 = fetch(at, t, k + DEPTH);
      if (THREADS < 2 * BLOCK) { f1 = fetch(at, t + THREADS, k + DEPTH); }
    }
    for (var q = 0u; q < DEPTH; q++) {
      let a0 = blockA[q * STEP + ty];
      let a1 = blockA[q * STEP + SIDE + ty];
      let b0 = blockB[q * STEP + tx];
      let b1 = blockB[q * STEP + SIDE + tx];
      c00 = mad(c00, a0, b0);
      c01 = mad(c01, a0, b1);
      c10 = mad(c10, a1, b0);
      c11 = mad(c11, a1, b1);
    }
  }
  store(c00, at, at.row + ty * 4, at.col + tx * 4);
  store(c01, at, at.row + ty * 4, at.col + BLOCK / 2 + tx * 4);
  store(c10, at, at.row + BLOCK / 2 + ty * 4, at.col + tx * 4);
  store(c11, at, at.row + BLOCK / 2 + ty * 4, at.col + BLOCK / 2 + tx * 4);
}
