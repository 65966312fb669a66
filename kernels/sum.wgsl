// sum: y[first + (o,i)] = factor · Σ_a x[o,a,i] (+ the old y when accumulate), with x as [outer, length, inner] around the axis
//   in x[outer,length,inner]   out y[...]
//   grid: main: one workgroup per output, LANES threads share its terms   columns: one thread per output, for a wide inner
//   numerics: f32 partial sums, one per thread
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias y_t = f32;

struct Params { outputs: u32, length: u32, inner: u32, first: u32, factor: f32, accumulate: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> y: array<y_t>;

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

fn store(out: u32, total: f32) {
  var value = total * p.factor;
  if (p.accumulate == 1u) { value += f32(y[p.first + out]); }
  y[p.first + out] = y_t(value);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = wg.x + wg.y * nwg.x;
  if (out >= p.outputs) { return; }
  let at = (out / p.inner) * p.length * p.inner + out % p.inner;
  var sum = 0.0;
  for (var a = lane; a < p.length; a += LANES) { sum += f32(x[at + a * p.inner]); }
  let total = reduceSum(lane, sum);
  if (lane == 0u) { store(out, total); }
}

@compute @workgroup_size(LANES)
fn columns(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out >= p.outputs) { return; }
  let at = (out / p.inner) * p.length * p.inner + out % p.inner;
  // Four partial sums shorten the chain of roundings and of dependent additions.
  var sums = vec4<f32>(0.0);
  var a = 0u;
  for (; a + 4u <= p.length; a += 4u) {
    let first = at + a * p.inner;
    sums += vec4<f32>(f32(x[first]), f32(x[first + p.inner]), f32(x[first + 2u * p.inner]), f32(x[first + 3u * p.inner]));
  }
  for (; a < p.length; a++) { sums.x += f32(x[at + a * p.inner]); }
  store(out, (sums.x + sums.y) + (sums.z + sums.w));
}
