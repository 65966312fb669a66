// topK: ids[first + n, j] = index of the j-th largest x[n,c], with equal values in the order of c
//   in x[N,C]   out ids[first + N, K]   grid: one workgroup per row, LANES threads share it
//   why: one pass over the row per j finds the largest element that comes after the last one found, without workspace
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;

struct Params { n: u32, c: u32, k: u32, first: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> ids: array<i32>;

var<workgroup> values: array<f32, LANES>;
var<workgroup> indices: array<u32, LANES>; // c if a lane found none

/// Whether a comes before b in the order of results; index c means none.
fn precedes(a: f32, aIndex: u32, b: f32, bIndex: u32) -> bool {
  if (aIndex == p.c || bIndex == p.c) { return aIndex != p.c; }
  return a > b || (a == b && aIndex < bIndex);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  var last = 0.0;
  var lastIndex = p.c;
  for (var j = 0u; j < p.k; j++) {
    var most = 0.0;
    var best = p.c;
    for (var c = lane; c < p.c; c += LANES) {
      let candidate = f32(x[row * p.c + c]);
      if ((j == 0u || precedes(last, lastIndex, candidate, c)) && precedes(candidate, c, most, best)) {
        most = candidate;
        best = c;
      }
    }
    values[lane] = most;
    indices[lane] = best;
    workgroupBarrier();
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
      if (lane < stride) {
        let other = lane + stride;
        if (precedes(values[other], indices[other], values[lane], indices[lane])) {
          values[lane] = values[other];
          indices[lane] = indices[other];
        }
      }
      workgroupBarrier();
    }
    last = values[0];
    lastIndex = indices[0];
    workgroupBarrier();
    if (lane == 0u) { ids[(p.first + row) * p.k + j] = i32(lastIndex); }
  }
}
