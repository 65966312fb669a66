// adamw: one step in place, with m and v the moments of g · gradScale; w ← w - decay · w - lr · (m/c1) / (√(v/c2) + eps)
//   in g[N] gradScale[1]   in/out w[N] m[N] v[N]   grid: one workgroup per LANES · VECTORS vectors of four; the last may reach into
//   the padding of the storage
//   numerics: f32 state; the corrections c = 1 - βᵗ and 1 - β come from the host, in double   source: Loshchilov & Hutter 2019
requires immediate_address_space;

const LANES: u32 = 64;
const VECTORS: u32 = 4; // per thread, LANES apart

alias w_v = vec4<f32>;
alias m_v = vec4<f32>;
alias v_v = vec4<f32>;
alias g_v = vec4<f32>;

struct Params {
  vectors: u32,
  lr: f32,
  beta1: f32,
  oneMinusBeta1: f32,
  beta2: f32,
  oneMinusBeta2: f32,
  eps: f32,
  decay: f32,
  correction1: f32,
  correction2: f32,
  hasScale: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> w: array<w_v>;
@group(0) @binding(1) var<storage, read_write> m: array<m_v>;
@group(0) @binding(2) var<storage, read_write> v: array<v_v>;
@group(0) @binding(3) var<storage, read> g: array<g_v>;
@group(0) @binding(4) var<storage, read> gradScale: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let factor = select(1.0, gradScale[0], p.hasScale == 1u);
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let at = first + i * LANES;
    if (at < p.vectors) {
      let grad = vec4<f32>(g[at]) * factor;
      let m1 = p.beta1 * m[at] + p.oneMinusBeta1 * grad;
      let v1 = p.beta2 * v[at] + p.oneMinusBeta2 * grad * grad;
      m[at] = m1;
      v[at] = v1;
      let update = p.lr * (m1 / p.correction1) / (sqrt(v1 / p.correction2) + p.eps);
      w[at] -= p.decay * w[at] + update;
    }
  }
}
