// scaleBy: y[i] = s · x[i], s a scalar on the device
//   in x[N] s[1]   out y[N]   grid: one workgroup per LANES · VECTORS vectors of four; the last may reach into the padding of the storage
requires immediate_address_space;

const LANES: u32 = 64;
const VECTORS: u32 = 4; // per thread, LANES apart

alias x_v = vec4<f32>;
alias y_v = vec4<f32>;

struct Params { vectors: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read> s: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<y_v>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let at = first + i * LANES;
    if (at < p.vectors) {
      y[at] = y_v(s[0] * vec4<f32>(x[at]));
    }
  }
}
