// main: y[i] = apply(a[i], b[i])      compare: m[i] = test(a[i], b[i]), as bytes 0 and 1, four to a word
//   the op row gives the bodies of `apply` and `test`
//   in a[N] b[N]   out y[N] or m[N / 4]   grid: one workgroup per LANES · VECTORS vectors of four; the last may reach into
//   the padding of the storage
//   numerics: f32 for every element type; `scalar` and `other` are parameters that a row may use
requires immediate_address_space;

const LANES: u32 = 64;
const VECTORS: u32 = 4; // per thread, LANES apart

alias a_v = vec4<f32>;
alias b_v = vec4<f32>;
alias y_v = vec4<f32>;

struct Params { vectors: u32, scalar: f32, other: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_v>;
@group(0) @binding(1) var<storage, read> b: array<b_v>;
@group(0) @binding(2) var<storage, read_write> y: array<y_v>;
@group(0) @binding(3) var<storage, read_write> m: array<u32>;

fn apply(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> { return a + b; }
fn test(a: vec4<f32>, b: vec4<f32>) -> vec4<bool> { return a == b; }

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let at = first + i * LANES;
    if (at < p.vectors) {
      y[at] = y_v(apply(vec4<f32>(a[at]), vec4<f32>(b[at])));
    }
  }
}

@compute @workgroup_size(LANES)
fn compare(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let at = first + i * LANES;
    if (at < p.vectors) {
      let found = vec4<u32>(test(vec4<f32>(a[at]), vec4<f32>(b[at])));
      m[at] = dot(found, vec4<u32>(1u, 0x100u, 0x10000u, 0x1000000u));
    }
  }
}
