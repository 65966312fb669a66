// sumSquares: totals[s] = totals[s] + Σ x² over the chunks s, s + S, s + 2 S, ... of 1,024 elements
//   in x[n] (elements first .. first + n of all)   in/out totals[S]   grid: one workgroup per total, LANES threads share it
//   numerics: f32, one partial sum per thread, then a tree; the order is fixed, so results are the same on every run
requires immediate_address_space;

const LANES: u32 = 64;
const CHUNK: u32 = 1024;

alias x_t = f32;

struct Params { first: u32, n: u32, totals: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> totals: array<f32>;

var<workgroup> partial: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let s = wg.x + wg.y * nwg.x;
  if (s >= p.totals) { return; }
  let end = p.first + p.n;
  var sum = 0.0;
  for (var start = s * CHUNK; start < end; start += p.totals * CHUNK) {
    for (var i = max(start, p.first) + lane; i < min(start + CHUNK, end); i += LANES) {
      let value = f32(x[i - p.first]);
      sum += value * value;
    }
  }
  partial[lane] = sum;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { partial[lane] += partial[lane + stride]; }
    workgroupBarrier();
  }
  if (lane == 0u) { totals[s] += partial[0]; }
}
