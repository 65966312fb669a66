// sgd: d = g · gradScale + weightDecay · w; m ← momentum · m + d; w ← w - lr · (nesterov ? d + momentum · m : m), in place
//   in g[N] gradScale[1]   in/out w[N] m[N]   grid: one workgroup per LANES · VECTORS vectors of four; the last may reach into
//   the padding of the storage
//   numerics: f32 state   source: Sutskever et al. 2013, in PyTorch's form
requires immediate_address_space;

const LANES: u32 = 64;
const VECTORS: u32 = 4; // per thread, LANES apart

alias w_v = vec4<f32>;
alias m_v = vec4<f32>;
alias g_v = vec4<f32>;

struct Params { vectors: u32, lr: f32, momentum: f32, weightDecay: f32, nesterov: u32, hasScale: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> w: array<w_v>;
@group(0) @binding(1) var<storage, read_write> m: array<m_v>;
@group(0) @binding(2) var<storage, read> g: array<g_v>;
@group(0) @binding(3) var<storage, read> gradScale: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let factor = select(1.0, gradScale[0], p.hasScale == 1u);
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let at = first + i * LANES;
    if (at < p.vectors) {
      let d = vec4<f32>(g[at]) * factor + p.weightDecay * w[at];
      let m1 = p.momentum * m[at] + d;
      m[at] = m1;
      w[at] -= p.lr * select(m1, d + p.momentum * m1, p.nesterov == 1u);
    }
  }
}
