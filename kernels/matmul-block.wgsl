// matmul for GPUs, and elsewhere for extents that are not multiples of 4: y[m,n] = Σ_k a·b (+ bias[n]) (+ y[m,n]), in the forms
//   nt: a[M,K] b[N,K]   nn: a[M,K] b[K,N]   tn: a[K,M] b[K,N]   batched: one of each after the other
//   in a b bias[N]   out y[M,N]; with split-K partial sums [splits,batches,M,N] over `splitDepth` of k each, which
//   matmul-split-k adds
//   a starts at aAt with row stride aRow; y at column yAt with row stride yRow
//   grid: one workgroup per block of BLOCK x BLOCK and split, 8 x 8 values per thread
//   why: 64 multiply-adds per four vectors from workgroup memory. Operands are read along the axis that is innermost in
//   memory and staged as [k][four of m or n]; where they are read as vectors along k, those are transposed in registers. The
//   next block of k is loaded while this one is multiplied.
//   numerics: sums are f32 for every element type, over k in order
requires immediate_address_space;

const FORM: u32 = 0; // NT, NN or TN
const NT: u32 = 0;
const NN: u32 = 1;
const TN: u32 = 2;
const A_ALONG_K: bool = FORM != TN; // the axis that is innermost in memory
const B_ALONG_K: bool = FORM == NT;
const WIDTH: u32 = 4; // values read and written at a time; 1 if extents, offsets or strides are not multiples of 4
const BLOCK: u32 = 128; // or 64, where blocks of 128 would be too few for the GPU
const SIDE: u32 = BLOCK / 8; // threads along either axis
const THREADS: u32 = SIDE * SIDE;
const DEPTH: u32 = 16; // of k at a time
const FOURS: u32 = BLOCK / 4; // vectors of a block for each k
const STEP: u32 = FOURS + 1; // vectors from one k to the next, with one of padding against bank conflicts

alias a_v = vec4<f32>;
// WIDTH=1: alias a_v = f32;
alias b_v = vec4<f32>;
// WIDTH=1: alias b_v = f32;
alias bias_t = f32;
alias y_v = vec4<f32>;
// WIDTH=1: alias y_v = f32;
alias value = vec4<f32>; // what is read and written at a time
// WIDTH=1: alias value = f32;

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

/// A vector of a block: its k, and its index among the vectors of m or n.
struct Four { k: u32, v: u32 }

/// Vector j of load i. Neighbouring threads read what is neighbouring in memory.
fn fourOf(i: u32, j: u32, alongK: bool) -> Four {
  if (!alongK) { return Four(i / FOURS * 4 + j, i % FOURS); }
  if (WIDTH == 1) { return Four(i % DEPTH, i / DEPTH * 4 + j); }
  return Four(i % 4 * 4 + j, i / 4);
}

/// The row or column of a block that is component c of vector v. Those of single values are FOURS apart, so that neighbouring
/// threads read and write neighbouring words.
fn lineOf(v: u32, c: u32) -> u32 { return v * 4 + c; }
// WIDTH=1: fn lineOf(v: u32, c: u32) -> u32 { return v + c * FOURS; }

/// a[m,k], or four from there on along the axis that is innermost in memory; past the ends, those at the end.
fn readA(at: Place, m: u32, k: u32) -> value {
  let first = at.batch * p.m * p.k + p.aAt;
  if (A_ALONG_K) { return value(a[(first + min(m, p.m - 1) * p.aRow + min(k, p.k - WIDTH)) / WIDTH]); }
  return value(a[(first + min(k, p.k - 1) * p.aRow + min(m, p.m - WIDTH)) / WIDTH]);
}

fn readB(at: Place, n: u32, k: u32) -> value {
  let first = at.batch * p.n * p.k;
  if (B_ALONG_K) { return value(b[(first + min(n, p.n - 1) * p.k + min(k, p.k - WIDTH)) / WIDTH]); }
  return value(b[(first + min(k, p.k - 1) * p.n + min(n, p.n - WIDTH)) / WIDTH]);
}

/// One vector of rows, zero past the end of k. Rows past the end repeat others and are not stored.
fn fourA(at: Place, i: u32, j: u32, k0: u32) -> vec4<f32> {
  let four = fourOf(i, j, A_ALONG_K);
  let k = k0 + four.k;
  let m = at.row + lineOf(four.v, 0);
  let v = readA(at, m, k);
  // WIDTH=1: let v = vec4(readA(at, m, k), readA(at, m + FOURS, k), readA(at, m + 2 * FOURS, k), readA(at, m + 3 * FOURS, k));
  return select(vec4<f32>(), v, k < p.k);
}

fn fourB(at: Place, i: u32, j: u32, k0: u32) -> vec4<f32> {
  let four = fourOf(i, j, B_ALONG_K);
  let k = k0 + four.k;
  let n = at.col + lineOf(four.v, 0);
  let v = readB(at, n, k);
  // WIDTH=1: let v = vec4(readB(at, n, k), readB(at, n + FOURS, k), readB(at, n + 2 * FOURS, k), readB(at, n + 3 * FOURS, k));
  return select(vec4<f32>(), v, k < p.k);
}

/// Load i of a: four vectors of rows.
fn fetchA(at: Place, i: u32, k0: u32) -> mat4x4<f32> {
  if (WIDTH == 1 || !A_ALONG_K) {
    return mat4x4(fourA(at, i, 0, k0), fourA(at, i, 1, k0), fourA(at, i, 2, k0), fourA(at, i, 3, k0));
  }
  let four = fourOf(i, 0, A_ALONG_K);
  let k = k0 + four.k;
  let m = at.row + lineOf(four.v, 0);
  let v = mat4x4(vec4(readA(at, m, k)), vec4(readA(at, m + 1, k)), vec4(readA(at, m + 2, k)), vec4(readA(at, m + 3, k)));
  if (k >= p.k) { return mat4x4<f32>(); }
  return transpose(v);
}

fn fetchB(at: Place, i: u32, k0: u32) -> mat4x4<f32> {
  if (WIDTH == 1 || !B_ALONG_K) {
    return mat4x4(fourB(at, i, 0, k0), fourB(at, i, 1, k0), fourB(at, i, 2, k0), fourB(at, i, 3, k0));
  }
  let four = fourOf(i, 0, B_ALONG_K);
  let k = k0 + four.k;
  let n = at.col + lineOf(four.v, 0);
  let v = mat4x4(vec4(readB(at, n, k)), vec4(readB(at, n + 1, k)), vec4(readB(at, n + 2, k)), vec4(readB(at, n + 3, k)));
  if (k >= p.k) { return mat4x4<f32>(); }
  return transpose(v);
}

/// Whether a thread's load is one of a: the first of two for blocks of 64; for 128 there is one, of a or of b.
fn isOfA(t: u32, load: u32) -> bool { return select(load == 0, t < BLOCK, BLOCK < THREADS); }

fn fetch(at: Place, t: u32, load: u32, k0: u32) -> mat4x4<f32> {
  if (isOfA(t, load)) { return fetchA(at, t, k0); }
  return fetchB(at, t % BLOCK, k0);
}

/// Where vector j of load i is staged.
fn placeOf(i: u32, j: u32, alongK: bool) -> u32 {
  let four = fourOf(i, j, alongK);
  return four.k * STEP + four.v;
}

fn keep(t: u32, load: u32, v: mat4x4<f32>) {
  let i = t % BLOCK;
  if (isOfA(t, load)) {
    blockA[placeOf(i, 0, A_ALONG_K)] = v[0];
    blockA[placeOf(i, 1, A_ALONG_K)] = v[1];
    blockA[placeOf(i, 2, A_ALONG_K)] = v[2];
    blockA[placeOf(i, 3, A_ALONG_K)] = v[3];
  } else {
    blockB[placeOf(i, 0, B_ALONG_K)] = v[0];
    blockB[placeOf(i, 1, B_ALONG_K)] = v[1];
    blockB[placeOf(i, 2, B_ALONG_K)] = v[2];
    blockB[placeOf(i, 3, B_ALONG_K)] = v[3];
  }
}

fn mad(sum: mat4x4<f32>, s: vec4<f32>, v: vec4<f32>) -> mat4x4<f32> {
  return mat4x4(fma(vec4(s.x), v, sum[0]), fma(vec4(s.y), v, sum[1]),
                fma(vec4(s.z), v, sum[2]), fma(vec4(s.w), v, sum[3]));
}

fn biasAt(i: u32) -> value { return vec4(f32(bias[i]), f32(bias[i + 1]), f32(bias[i + 2]), f32(bias[i + 3])); }
// WIDTH=1: fn biasAt(i: u32) -> value { return f32(bias[i]); }

/// Stores four rows of four columns: those of vector `rows` of a's block and vector `cols` of b's. The bounds of the loop
/// over columns depend on parameters, or software drivers would unroll it and compile for seconds.
fn store(sums: mat4x4<f32>, at: Place, rows: u32, cols: u32) {
  var sum = sums;
  let first = at.col + lineOf(cols, 0);
  let end = min(at.col + lineOf(cols, 3) + 1, p.n);
  for (var j = 0u; j < 4; j++) {
    let row = at.row + lineOf(rows, j);
    if (row >= p.m) { break; }
    for (var col = first; col < end; col += FOURS) {
      let i = (at.matrix * p.m * p.n + p.yAt + row * p.yRow + col) / WIDTH;
      var v = sum[j];
      // WIDTH=1: var v = sum[j][(col - first) / FOURS];
      if (p.hasBias != 0) { v += biasAt(p.yAt + col); }
      if (p.accumulate != 0) { v += value(y[i]); }
      y[i] = y_v(v);
    }
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
  var f0: mat4x4<f32>;
  var f1: mat4x4<f32>;
  for (var k = start; ; k += DEPTH) {
    if (k < end) {
      f0 = fetch(at, t, 0, k);
      if (THREADS == BLOCK) { f1 = fetch(at, t, 1, k); }
    }
    if (k > start) {
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
    if (k >= end) { break; }
    workgroupBarrier();
    keep(t, 0, f0);
    if (THREADS == BLOCK) { keep(t, 1, f1); }
    workgroupBarrier();
  }
  store(c00, at, ty, tx);
  store(c01, at, ty, SIDE + tx);
  store(c10, at, SIDE + ty, tx);
  store(c11, at, SIDE + ty, SIDE + tx);
}
