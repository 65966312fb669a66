// argmax: y[first + n] = index of the largest x[n,c], the first of equals
//   in x[N,C]   out y[first + N]   grid: one workgroup per row, LANES threads share it
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;

struct Params { n: u32, c: u32, first: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> y: array<i32>;

var<workgroup> values: array<f32, LANES>;
var<workgroup> indices: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  let at = row * p.c;
  var best = min(lane, p.c - 1u); // lanes past the end repeat the last column, which cannot win a tie
  for (var c = best; c < p.c; c += LANES) {
    if (x[at + c] > x[at + best]) { best = c; }
  }
  values[lane] = f32(x[at + best]);
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
  if (lane == 0u) { y[p.first + row] = i32(indices[0]); }
}
