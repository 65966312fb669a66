// rows of a in f16, for subgroup matrices: half[m,k] = a[m,k] / scale[m], scale[m] a power of two that brings the largest of the
// row to 2^14 .. 2^15, so that nothing overflows and what is lost is 2^-11 of each value, or 2^-39 of the row's largest
//   in a[M,K], from aAt with row stride aRow   out half[M,K] scales[M]   K, aAt and aRow are multiples of 4
//   or, with TAIL = 1, half[M,K+4]: after each row the exponent of its power, biased as in f32, in the place of scales
//   grid: one workgroup a row
//   why: read twice, the second time from the cache
requires immediate_address_space;
enable f16;

const LANES: u32 = 128;
const TAIL: u32 = 0;

alias a_v = vec4<f32>;

struct Params { m: u32, k: u32, aAt: u32, aRow: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_v>;
@group(0) @binding(1) var<storage, read_write> half: array<vec4<f16>>; // half f16: @group(0) @binding(1) var<storage, read_write> half: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;

var<workgroup> largest: array<f32, LANES>;

fn largestOf(lane: u32, value: f32) -> f32 {
  largest[lane] = value;
  for (var stride = LANES / 2; stride > 0; stride /= 2) {
    workgroupBarrier();
    if (lane < stride) { largest[lane] = max(largest[lane], largest[lane + stride]); }
  }
  workgroupBarrier();
  return largest[0];
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.m) { return; }
  let start = (p.aAt + row * p.aRow) / 4;
  var most = 0.0;
  for (var i = lane; i < p.k / 4; i += LANES) {
    let v = abs(vec4<f32>(a[start + i]));
    most = max(most, max(max(v.x, v.y), max(v.z, v.w)));
  }
  let exponent = clamp(bitcast<u32>(largestOf(lane, most)) >> 23, 32, 240); // biased; of 2^e <= largest < 2^(e+1)
  let scale = bitcast<f32>((exponent - 14) << 23);
  let inverse = bitcast<f32>((268 - exponent) << 23);
  let to = row * (p.k / 4 + TAIL);
  if (lane == 0) {
    if (TAIL != 0) { half[to + p.k / 4] = vec4(f16(exponent - 14)); } else { scales[row] = scale; }
  }
  for (var i = lane; i < p.k / 4; i += LANES) { half[to + i] = vec4<f16>(vec4<f32>(a[start + i]) * inverse); }
}
