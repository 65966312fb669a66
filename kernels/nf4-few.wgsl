// nf4Linear where y has few rows, as in decoding token by token: y[m,n] = Σ_k x[m,k] w[n,k] (+ bias[n]), with
// w[n,k] = level[code] · absmax of its block, decoded while it is read (nf4-dequantize.wgsl has the format)
//   in x[M,K] codes table absmax scales bias[N]   out y[M,N]; codes are bound from row first of w on, codesAt elements in
//   grid: [⌈count / COLS⌉, M, 1], LANES threads share COLS of the `count` columns from `first` on
//   why: a weight is read once per row of y, at an eighth of the bytes of f32
//   numerics: sums are f32, from LANES partial sums added as a tree
requires immediate_address_space;

const LANES: u32 = 64;
const COLS: u32 = 4;
const MAP_AT: u32 = 16;
const OFFSET_AT: u32 = 272;

alias x_t = f32;
alias bias_t = f32;
alias y_t = f32;

struct Params {
  n: u32, k: u32, first: u32, count: u32, codesAt: u32, blockBits: u32, nestedBits: u32, isDouble: u32, zero: u32,
  hasBias: u32
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read> absmax: array<f32>;
@group(0) @binding(4) var<storage, read> scales: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<bias_t>;
@group(0) @binding(6) var<storage, read_write> y: array<y_t>;

var<workgroup> partial: array<f32, LANES>;
var<workgroup> levels: array<f32, 16>;

fn rounded(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ p.zero); }

fn scaleOf(b: u32) -> f32 {
  if (p.isDouble == 0) { return absmax[b]; }
  let q = extractBits(scales[b / 4], b % 4 * 8, 8);
  return rounded(table[MAP_AT + q] * absmax[b >> p.nestedBits]) + table[OFFSET_AT];
}

/// Σ over the eight weights of a word, without those that belong to neighbouring rows.
fn wordSum(word: u32, row: u32, xAt: u32) -> f32 {
  let c = codes[word - p.codesAt / 8];
  var sum = 0.0;
  for (var j = 0u; j < 8; j++) {
    let k = word * 8 + j - row; // wraps around before the start of the row, which puts it past the end
    if (k < p.k) { sum += f32(x[xAt + k]) * levels[extractBits(c, (j ^ 1) * 4, 4)]; }
  }
  return sum * scaleOf((word * 8) >> p.blockBits);
}

fn total(lane: u32) -> f32 {
  for (var stride = LANES / 2; stride > 0; stride /= 2) {
    workgroupBarrier();
    if (lane < stride) { partial[lane] += partial[lane + stride]; }
  }
  workgroupBarrier();
  return partial[0];
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  if (lane < 16) { levels[lane] = table[lane]; }
  workgroupBarrier();
  for (var c = 0u; c < COLS; c++) {
    let n = p.first + min(wg.x * COLS + c, p.count - 1);
    let row = n * p.k;
    var sum = 0.0;
    for (var word = row / 8 + lane; word * 8 < row + p.k; word += LANES) { sum += wordSum(word, row, wg.y * p.k); }
    workgroupBarrier();
    partial[lane] = sum;
    var v = total(lane);
    if (lane == 0) {
      if (p.hasBias != 0) { v += f32(bias[n]); }
      y[wg.y * p.n + n] = y_t(v);
    }
  }
}
