// matmul for any extents, on GPUs and without subgroups: y[m,n] = Σ_k a·b (+ bias[n]) (+ y[m,n]), in the forms
//   nt: a[M,K] b[N,K]   nn: a[M,K] b[K,N]   tn: a[K,M] b[K,N]   batched: P of each, one after the other
//   in a b bias[N]   out y[M,N]   grid: one workgroup of 256 threads per block of 64 x 64, 4 x 4 values per thread
//   a starts at aAt with row stride aRow; y at column yAt with row stride yRow
//   why: both blocks are staged as vectors along the axis that is innermost in memory, so neighbouring threads read
//   neighbouring words; a thread that needs the other axis transposes 4 x 4 values in registers, which costs nothing.
//   Rows are padded from four vectors to five, which avoids bank conflicts between threads of a column.
//   numerics: sums are f32 for every element type, over k in order
requires immediate_address_space;

const FORM: u32 = 0; // NT, NN or TN
const NT: u32 = 0;
const NN: u32 = 1;
const TN: u32 = 2;
const DEPTH: u32 = 16; // of k at a time

alias a_t = f32;
alias b_t = f32;
alias bias_t = f32;
alias y_t = f32;

struct Params {
  batches: u32, m: u32, n: u32, k: u32, aAt: u32, aRow: u32, yAt: u32, yRow: u32,
  accumulate: u32, hasBias: u32
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_t>;
@group(0) @binding(1) var<storage, read> b: array<b_t>;
@group(0) @binding(2) var<storage, read> bias: array<bias_t>;
@group(0) @binding(3) var<storage, read_write> y: array<y_t>;

var<workgroup> blockA: array<vec4<f32>, 320>; // [64 m][4 of k, padded to 5]; tn: [16 k][16 of m]
var<workgroup> blockB: array<vec4<f32>, 320>; // nt: [64 n][4 of k, padded to 5]; else [16 k][16 of n]

/// Zero past the edges, so that sums need no tests; reads are clamped.
fn readA(batch: u32, m: u32, k: u32) -> f32 {
  let at = batch * p.m * p.k + p.aAt;
  let mIn = min(m, p.m - 1);
  let kIn = min(k, p.k - 1);
  let v = f32(a[at + select(mIn * p.aRow + kIn, kIn * p.aRow + mIn, FORM == TN)]);
  return select(0, v, m < p.m && k < p.k);
}

fn readB(batch: u32, k: u32, n: u32) -> f32 {
  let at = batch * p.n * p.k;
  let nIn = min(n, p.n - 1);
  let kIn = min(k, p.k - 1);
  let v = f32(b[at + select(kIn * p.n + nIn, nIn * p.k + kIn, FORM == NT)]);
  return select(0, v, n < p.n && k < p.k);
}

/// Thread `t` of 256 loads one vector of each block.
fn load(t: u32, batch: u32, row: u32, col: u32, k: u32) {
  if (FORM == TN) {
    let m = row + t % 16 * 4;
    let at = k + t / 16;
    blockA[t] = vec4(readA(batch, m, at), readA(batch, m + 1, at), readA(batch, m + 2, at), readA(batch, m + 3, at));
  } else {
    let m = row + t / 4;
    let at = k + t % 4 * 4;
    blockA[t / 4 * 5 + t % 4] =
      vec4(readA(batch, m, at), readA(batch, m, at + 1), readA(batch, m, at + 2), readA(batch, m, at + 3));
  }
  if (FORM == NT) {
    let n = col + t / 4;
    let at = k + t % 4 * 4;
    blockB[t / 4 * 5 + t % 4] =
      vec4(readB(batch, at, n), readB(batch, at + 1, n), readB(batch, at + 2, n), readB(batch, at + 3, n));
  } else {
    let n = col + t % 16 * 4;
    let at = k + t / 16;
    blockB[t] = vec4(readB(batch, at, n), readB(batch, at, n + 1), readB(batch, at, n + 2), readB(batch, at, n + 3));
  }
}

/// Four rows of a, each with four values along k.
fn rowsOfA(ty: u32, q: u32) -> mat4x4<f32> {
  if (FORM == TN) {
    let i = q * 64 + ty;
    return transpose(mat4x4(blockA[i], blockA[i + 16], blockA[i + 32], blockA[i + 48]));
  }
  let i = ty * 20 + q;
  return mat4x4(blockA[i], blockA[i + 5], blockA[i + 10], blockA[i + 15]);
}

/// Four values along k of b, each with the thread's four columns.
fn rowsOfB(tx: u32, q: u32) -> mat4x4<f32> {
  if (FORM == NT) {
    let i = tx * 5 + q; // columns 16 apart
    return transpose(mat4x4(blockB[i], blockB[i + 80], blockB[i + 160], blockB[i + 240]));
  }
  let i = q * 64 + tx;
  return mat4x4(blockB[i], blockB[i + 16], blockB[i + 32], blockB[i + 48]);
}

fn mad(sum: vec4<f32>, s: vec4<f32>, b: mat4x4<f32>) -> vec4<f32> {
  return fma(vec4(s.w), b[3], fma(vec4(s.z), b[2], fma(vec4(s.y), b[1], fma(vec4(s.x), b[0], sum))));
}

/// A thread's rows from `row` on and columns from `col` on, `step` apart. Loop bounds depend on parameters, so that drivers do not unroll.
fn store(sums: mat4x4<f32>, batch: u32, row: u32, col: u32, step: u32) {
  var sum = sums;
  for (var m = row; m < min(row + 4, p.m); m++) {
    for (var n = col; n < min(col + 4 * step, p.n); n += step) {
      let i = batch * p.m * p.n + p.yAt + m * p.yRow + n;
      var v = sum[m - row][(n - col) / step];
      if (p.hasBias != 0) { v += f32(bias[p.yAt + n]); }
      if (p.accumulate != 0) { v += f32(y[i]); }
      y[i] = y_t(v);
    }
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
  let rows = (p.m + 63) / 64;
  let cols = (p.n + 63) / 64;
  let block = wg.x + wg.y * nwg.x;
  let batch = block / (rows * cols);
  if (batch >= p.batches) { return; }
  let row = block % rows * 64;
  let col = block / rows % cols * 64;
  let ty = t / 16;
  let tx = t % 16;
  var sum: mat4x4<f32>;
  for (var k = 0u; k < p.k; k += DEPTH) {
    load(t, batch, row, col, k);
    workgroupBarrier();
    for (var q = 0u; q < (min(DEPTH, p.k - k) + 3) / 4; q++) {
      let ra = rowsOfA(ty, q);
      let rb = rowsOfB(tx, q);
      sum = mat4x4(mad(sum[0], ra[0], rb), mad(sum[1], ra[1], rb), mad(sum[2], ra[2], rb), mad(sum[3], ra[3], rb));
    }
    workgroupBarrier();
  }
  if (FORM == NT) { store(sum, batch, row + ty * 4, col + tx, 16); }
  else { store(sum, batch, row + ty * 4, col + tx * 4, 1); }
}
