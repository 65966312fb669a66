// unary: y[i] = apply(x[i]); the op row gives the body of `apply`
//   in x[N], and s[1] if the body uses it   out y[N]   grid: one workgroup per LANES · VECTORS vectors of four; the last may reach into the padding of the storage
//   numerics: f32 for every element type; `scalar` and `other` are parameters that a row may use
requires immediate_address_space;

const LANES: u32 = 64;
const VECTORS: u32 = 4; // per thread, LANES apart

alias x_v = vec4<f32>;
alias y_v = vec4<f32>;

struct Params { vectors: u32, scalar: f32, other: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read_write> y: array<y_v>;
@group(0) @binding(2) var<storage, read> s: array<f32>; // a scalar on the device

fn apply(x: vec4<f32>) -> vec4<f32> { return x; }

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let at = first + i * LANES;
    if (at < p.vectors) {
      y[at] = y_v(apply(vec4<f32>(x[at])));
    }
  }
}
