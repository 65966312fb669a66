// forward: y[n,c] = e^x / Σ e^x over the visible c of a row; 0 where the byte of mask is 0, and in a row with nothing visible
//   in x[N,C] mask[M,C] as bytes, row (firstRow + n) mod M of it   out y[N,C]
// backward: y = dx = yIn · (dy - Σ_c dy · yIn)
//   in yIn[N,C] dy[N,C]   out y[N,C]
//   grid: one workgroup per row, LANES threads share it, for both
//   numerics: the row's maximum is subtracted, in halves so that no difference overflows; sums are f32
requires immediate_address_space;

const LANES: u32 = 64;
const LOWEST = -3.4028234663852886e38; // not above any value; finite, because WGSL may assume there are no infinities

alias x_t = f32;
alias y_t = f32;
alias yIn_t = f32;
alias dy_t = f32;

struct Params { n: u32, c: u32, maskRows: u32, firstRow: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read> mask: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<y_t>;
@group(0) @binding(3) var<storage, read> yIn: array<yIn_t>;
@group(0) @binding(4) var<storage, read> dy: array<dy_t>;

var<workgroup> partial: array<f32, LANES>;

fn reduceSum(lane: u32, value: f32) -> f32 {
  partial[lane] = value;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { partial[lane] += partial[lane + stride]; }
    workgroupBarrier();
  }
  let total = partial[0];
  workgroupBarrier();
  return total;
}

fn reduceMax(lane: u32, value: f32) -> f32 {
  partial[lane] = value;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { partial[lane] = max(partial[lane], partial[lane + stride]); }
    workgroupBarrier();
  }
  let largest = partial[0];
  workgroupBarrier();
  return largest;
}

fn visible(row: u32, c: u32) -> bool {
  if (p.maskRows == 0u) { return true; }
  let at = (p.firstRow + row) % p.maskRows * p.c + c;
  return ((mask[at / 4u] >> (at % 4u * 8u)) & 0xffu) != 0u;
}

/// e^(value - largest), for value <= largest.
fn shifted(value: f32, largest: f32) -> f32 {
  return exp(2.0 * max(0.5 * value - 0.5 * largest, -60.0));
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  let at = row * p.c;
  var largest = LOWEST;
  for (var c = lane; c < p.c; c += LANES) {
    if (visible(row, c)) { largest = max(largest, f32(x[at + c])); }
  }
  largest = reduceMax(lane, largest);
  var sum = 0.0;
  for (var c = lane; c < p.c; c += LANES) {
    if (visible(row, c)) { sum += shifted(f32(x[at + c]), largest); }
  }
  sum = max(1.0, reduceSum(lane, sum)); // the largest itself adds 1: below it, nothing is visible
  for (var c = lane; c < p.c; c += LANES) {
    var value = 0.0;
    if (visible(row, c)) { value = shifted(f32(x[at + c]), largest) / sum; }
    y[at + c] = y_t(value);
  }
}

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  let at = row * p.c;
  var dot = 0.0;
  for (var c = lane; c < p.c; c += LANES) { dot += f32(dy[at + c]) * f32(yIn[at + c]); }
  dot = reduceSum(lane, dot);
  for (var c = lane; c < p.c; c += LANES) { y[at + c] = y_t(f32(yIn[at + c]) * (f32(dy[at + c]) - dot)); }
}
