// partial_sums: partials[group] = Σ x² over the elements of a group      in x[N]   out partials[groups]   grid: `groups` workgroups
// finish: total = total + Σ partialsIn                                in partialsIn[n]   in/out total[1]   grid: one workgroup
//   numerics: f32, one partial sum per thread, then a tree; the order is fixed, so results are the same on every run
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;

struct Params { n: u32, groups: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;
@group(0) @binding(2) var<storage, read> partialsIn: array<f32>;
@group(0) @binding(3) var<storage, read_write> total: array<f32>;

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

@compute @workgroup_size(LANES)
fn partial_sums(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  var sum = 0.0;
  for (var i = wg.x * LANES + lane; i < p.n; i += p.groups * LANES) { sum += f32(x[i]) * f32(x[i]); }
  sum = reduceSum(lane, sum);
  if (lane == 0u) { partials[wg.x] = sum; }
}

@compute @workgroup_size(LANES)
fn finish(@builtin(local_invocation_index) lane: u32) {
  var sum = 0.0;
  for (var i = lane; i < p.n; i += LANES) { sum += partialsIn[i]; }
  sum = reduceSum(lane, sum);
  if (lane == 0u) { total[0] += sum; }
}
