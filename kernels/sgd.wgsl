// sgd: d = g · gradScale + weightDecay · w; m ← momentum · m + d; w ← w - lr · (nesterov ? d + momentum · m : m), in place
//   in g[N] gradScale[1]   in/out w[N] m[N]   grid: one thread per element, four apart by LANES
//   numerics: f32 state   source: Sutskever et al. 2013, as PyTorch has it
requires immediate_address_space;

const LANES: u32 = 64;
const PER_THREAD: u32 = 4;

alias g_t = f32;

struct Params { n: u32, lr: f32, momentum: f32, weightDecay: f32, nesterov: u32, hasScale: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> w: array<f32>;
@group(0) @binding(1) var<storage, read_write> m: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<g_t>;
@group(0) @binding(3) var<storage, read> gradScale: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let factor = select(1.0, gradScale[0], p.hasScale == 1u);
  let first = (wg.x + wg.y * nwg.x) * LANES * PER_THREAD + lane;
  for (var i = 0u; i < PER_THREAD; i++) {
    let at = first + i * LANES;
    if (at < p.n) {
      let d = f32(g[at]) * factor + p.weightDecay * w[at];
      let m1 = p.momentum * m[at] + d;
      m[at] = m1;
      w[at] -= p.lr * select(m1, d + p.momentum * m1, p.nesterov == 1u);
    }
  }
}
