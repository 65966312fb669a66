// forward: y[n,c] = (x - mean[n]) · rstd[n] · gain[c] + bias[c],  rstd = 1/√(mean_c (x - mean)² + eps)
//   in x[N,C] gain[C] bias[C]   out y[N,C] mean[N] rstd[N] (kept for backward)
// backward_x: y = dx[n,c] = rstd · (g - mean_c g - x̂ · mean_c(g · x̂)),  g = dy · gain, x̂ = (x - mean) · rstd
//   in x[N,C] gain[C] meanIn[N] rstdIn[N] dy[N,C]   out y[N,C]   grid of both: one workgroup per row, LANES threads share it
// backward_gain: dgain[c] = Σ_n dy · x̂ (+ dgain[c] when accumulate)
//   in x[N,C] meanIn[N] rstdIn[N] dy[N,C]   out dgain[C]   grid: one thread per column
//   numerics: the variance is that of differences from the mean, not a difference of squares; sums stay f32
//   source: Ba et al. 2016, eq. 4
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias gain_t = f32;
alias bias_t = f32;
alias y_t = f32;
alias dy_t = f32;

struct Params { n: u32, c: u32, eps: f32, hasGain: u32, hasBias: u32, accumulate: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read> gain: array<gain_t>;
@group(0) @binding(2) var<storage, read> bias: array<bias_t>;
@group(0) @binding(3) var<storage, read_write> y: array<y_t>;
@group(0) @binding(4) var<storage, read_write> mean: array<f32>;
@group(0) @binding(5) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(6) var<storage, read> meanIn: array<f32>;
@group(0) @binding(7) var<storage, read> rstdIn: array<f32>;
@group(0) @binding(8) var<storage, read> dy: array<dy_t>;
@group(0) @binding(9) var<storage, read_write> dgain: array<f32>;

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
  var sum = 0.0;
  for (var c = lane; c < p.c; c += LANES) { sum += f32(x[at + c]); }
  let center = reduceSum(lane, sum) / f32(p.c);
  var squares = 0.0;
  for (var c = lane; c < p.c; c += LANES) {
    let difference = f32(x[at + c]) - center;
    squares += difference * difference;
  }
  let r = inverseSqrt(reduceSum(lane, squares) / f32(p.c) + p.eps);
  if (lane == 0u) {
    mean[row] = center;
    rstd[row] = r;
  }
  for (var c = lane; c < p.c; c += LANES) {
    var value = (f32(x[at + c]) - center) * r * gainAt(c);
    if (p.hasBias == 1u) { value += f32(bias[c]); }
    y[at + c] = y_t(value);
  }
}

@compute @workgroup_size(LANES)
fn backward_x(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  let at = row * p.c;
  let center = meanIn[row];
  let r = rstdIn[row];
  var sum = 0.0;
  var dot = 0.0;
  for (var c = lane; c < p.c; c += LANES) {
    let g = f32(dy[at + c]) * gainAt(c);
    sum += g;
    dot += g * (f32(x[at + c]) - center) * r;
  }
  sum = reduceSum(lane, sum) / f32(p.c);
  dot = reduceSum(lane, dot) / f32(p.c);
  for (var c = lane; c < p.c; c += LANES) {
    y[at + c] = y_t(r * (f32(dy[at + c]) * gainAt(c) - sum - (f32(x[at + c]) - center) * r * dot));
  }
}

@compute @workgroup_size(LANES)
fn backward_gain(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let c = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (c >= p.c) { return; }
  var sum = 0.0;
  if (p.accumulate == 1u) { sum = dgain[c]; }
  for (var n = 0u; n < p.n; n++) {
    sum += f32(dy[n * p.c + c]) * (f32(x[n * p.c + c]) - meanIn[n]) * rstdIn[n];
  }
  dgain[c] = sum;
}
