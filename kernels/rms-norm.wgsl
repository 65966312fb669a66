// rmsNorm: y[n,c] = x[n,c] · rstd[n] · gain[c],  rstd[n] = 1/√(mean_c x² + eps)
//   in x[N,C] gain[C]   out y[N,C] rstd[N] (kept for backward)
// backward_x: dx[n,c] = rstd · (g - x · rstd² · mean_c(g · x)),  g = dy · gain
//   in x[N,C] gain[C] rstdIn[N] dy[N,C]   out y[N,C] (dx)   grid of both: one workgroup per row, LANES threads share it
// backward_gain: dgain[c] = Σ_n dy · x · rstd, added to what is there when accumulate
//   in x[N,C] rstdIn[N] dy[N,C]   out dgain[C]   grid: one thread per column
//   numerics: sums stay f32 whatever the elements are; every output is written   source: Zhang & Sennrich 2019, eq. 4
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias gain_t = f32;
alias y_t = f32;
alias dy_t = f32;

struct Params { n: u32, c: u32, eps: f32, hasGain: u32, accumulate: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read> gain: array<gain_t>;
@group(0) @binding(2) var<storage, read_write> y: array<y_t>;
@group(0) @binding(3) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(4) var<storage, read> rstdIn: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<dy_t>;
@group(0) @binding(6) var<storage, read_write> dgain: array<f32>;

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

fn gainAt(c: u32) -> f32 {
  if (p.hasGain == 0u) { return 1.0; }
  return f32(gain[c]);
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  let at = row * p.c;
  var sumSq = 0.0;
  for (var c = lane; c < p.c; c += LANES) {
    let v = f32(x[at + c]);
    sumSq += v * v;
  }
  let r = inverseSqrt(reduceSum(lane, sumSq) / f32(p.c) + p.eps);
  if (lane == 0u) { rstd[row] = r; }
  for (var c = lane; c < p.c; c += LANES) { y[at + c] = y_t(f32(x[at + c]) * r * gainAt(c)); }
}

@compute @workgroup_size(LANES)
fn backward_x(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  let at = row * p.c;
  var dot = 0.0;
  for (var c = lane; c < p.c; c += LANES) { dot += f32(dy[at + c]) * gainAt(c) * f32(x[at + c]); }
  let r = rstdIn[row];
  let mean = r * r * reduceSum(lane, dot) / f32(p.c);
  for (var c = lane; c < p.c; c += LANES) {
    y[at + c] = y_t(r * (f32(dy[at + c]) * gainAt(c) - f32(x[at + c]) * mean));
  }
}

@compute @workgroup_size(LANES)
fn backward_gain(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let c = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (c >= p.c) { return; }
  var sum = 0.0;
  if (p.accumulate == 1u) { sum = dgain[c]; }
  for (var n = 0u; n < p.n; n++) { sum += f32(dy[n * p.c + c]) * f32(x[n * p.c + c]) * rstdIn[n]; }
  dgain[c] = sum;
}
