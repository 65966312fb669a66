// where: y[i] = a[i] where the byte mask[i] is not 0, else b[i]; an absent operand counts as 0
//   in mask[N / 4] a[N] b[N]   out y[N]   grid: one workgroup per LANES · VECTORS vectors of four; the last may reach into
//   the padding of the storage
requires immediate_address_space;

const LANES: u32 = 64;
const VECTORS: u32 = 4; // per thread, LANES apart

alias a_v = vec4<f32>;
alias b_v = vec4<f32>;
alias y_v = vec4<f32>;

struct Params { vectors: u32, hasA: u32, hasB: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> mask: array<u32>;
@group(0) @binding(1) var<storage, read> a: array<a_v>;
@group(0) @binding(2) var<storage, read> b: array<b_v>;
@group(0) @binding(3) var<storage, read_write> y: array<y_v>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let at = first + i * LANES;
    if (at < p.vectors) {
      var left = vec4<f32>(0.0);
      var right = vec4<f32>(0.0);
      if (p.hasA == 1u) { left = vec4<f32>(a[at]); }
      if (p.hasB == 1u) { right = vec4<f32>(b[at]); }
      let bytes = vec4<u32>(mask[at]) & vec4<u32>(0xffu, 0xff00u, 0xff0000u, 0xff000000u);
      y[at] = y_v(select(right, left, bytes != vec4<u32>(0u)));
    }
  }
}
