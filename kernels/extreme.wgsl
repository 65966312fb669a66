// max and min along an axis: the largest direction · x[o,a,i] over a, the first of equals, with x as [outer, length, inner]
//   value[first + out] = that x, index[first + out] = base + a; either output may be absent
//   continued: the axis continues from an earlier window, whose value and index are kept unless an x here is larger
//   in x[outer,length,inner]   out value[...] index[...]   grid: one workgroup per output, LANES threads share its axis
//   numerics: the search starts from an element, not from a bound, so any finite value may be the result
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias value_t = f32;

struct Params { outputs: u32, length: u32, inner: u32, first: u32, direction: f32, hasValue: u32, hasIndex: u32, base: u32, continued: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> value: array<value_t>;
@group(0) @binding(2) var<storage, read_write> index: array<i32>;

var<workgroup> values: array<f32, LANES>;
var<workgroup> indices: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = wg.x + wg.y * nwg.x;
  if (out >= p.outputs) { return; }
  let at = (out / p.inner) * p.length * p.inner + out % p.inner;
  var best = min(lane, p.length - 1u); // lanes past the end repeat the last element, which cannot win a tie
  var most = p.direction * f32(x[at + best * p.inner]);
  for (var a = best + LANES; a < p.length; a += LANES) {
    let candidate = p.direction * f32(x[at + a * p.inner]);
    if (candidate > most) {
      most = candidate;
      best = a;
    }
  }
  values[lane] = most;
  indices[lane] = best;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) {
      let other = lane + stride;
      if (values[other] > values[lane] || (values[other] == values[lane] && indices[other] < indices[lane])) {
        values[lane] = values[other];
        indices[lane] = indices[other];
      }
    }
    workgroupBarrier();
  }
  if (lane == 0u) {
    if (p.continued == 1u && values[0] <= p.direction * f32(value[p.first + out])) { return; }
    if (p.hasValue == 1u) { value[p.first + out] = value_t(p.direction * values[0]); }
    if (p.hasIndex == 1u) { index[p.first + out] = i32(p.base + indices[0]); }
  }
}
