// f16 rows for subgroup matrices: rows[m,k] = a[m,k] / scales[m], where scales[m] is the power of two that brings the largest
//   magnitude of row m to 2^14 .. 2^15
//   in a[M,K], from aAt on with row stride aRow   out rows[M,K] scales[M]; K, aAt and aRow are multiples of 4
//   or, with EXPONENTS = 1, out rows[M,K+4]: element K of a row is the exponent of its scale, with the bias 127 of f32
//   grid: one workgroup per row
//   why: the second pass over a row reads it from the cache
//   numerics: nothing overflows; the error is 2^-11 of each value, or 2^-39 of the row's largest where that is more
requires immediate_address_space;
enable f16;

const LANES: u32 = 128;
const EXPONENTS: u32 = 0;

alias a_v = vec4<f32>;

struct Params { m: u32, k: u32, aAt: u32, aRow: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_v>;
@group(0) @binding(1) var<storage, read_write> rows: array<vec4<f16>>; // rows f16: @group(0) @binding(1) var<storage, read_write> rows: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;

var<workgroup> maxima: array<f32, LANES>;

/// The maximum of `value` over the workgroup.
fn workgroupMax(lane: u32, value: f32) -> f32 {
  maxima[lane] = value;
  for (var stride = LANES / 2; stride > 0; stride /= 2) {
    workgroupBarrier();
    if (lane < stride) { maxima[lane] = max(maxima[lane], maxima[lane + stride]); }
  }
  workgroupBarrier();
  return maxima[0];
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.m) { return; }
  let start = (p.aAt + row * p.aRow) / 4;
  var largest = 0.0;
  for (var i = lane; i < p.k / 4; i += LANES) {
    let v = abs(vec4<f32>(a[start + i]));
    largest = max(largest, max(max(v.x, v.y), max(v.z, v.w)));
  }
  let exponent = clamp(bitcast<u32>(workgroupMax(lane, largest)) >> 23, 32, 240); // biased; e of 2^e <= largest < 2^(e+1)
  let scale = bitcast<f32>((exponent - 14) << 23);
  let inverse = bitcast<f32>((268 - exponent) << 23);
  let to = row * (p.k / 4 + EXPONENTS);
  if (lane == 0) {
    if (EXPONENTS != 0) { rows[to + p.k / 4] = vec4(f16(exponent - 14)); } else { scales[row] = scale; }
  }
  for (var i = lane; i < p.k / 4; i += LANES) { rows[to + i] = vec4<f16>(vec4<f32>(a[start + i]) * inverse); }
}
