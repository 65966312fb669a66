// siluMulBackward: dgate = dy · up · silu'(gate), dup = dy · silu(gate), silu'(g) = σ (1 + g (1 - σ)), σ = sigmoid(g)
//   in dy[N] gate[N] up[N]   out dgate[N] dup[N]   grid: one workgroup per LANES · VECTORS vectors of four; the last may reach into the padding of the storage
//   numerics: σ from e^-|g|, which never overflows
requires immediate_address_space;

const LANES: u32 = 64;
const VECTORS: u32 = 4; // per thread, LANES apart

alias dy_v = vec4<f32>;
alias gate_v = vec4<f32>;
alias up_v = vec4<f32>;
alias dgate_v = vec4<f32>;
alias dup_v = vec4<f32>;

struct Params { vectors: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> dy: array<dy_v>;
@group(0) @binding(1) var<storage, read> gate: array<gate_v>;
@group(0) @binding(2) var<storage, read> up: array<up_v>;
@group(0) @binding(3) var<storage, read_write> dgate: array<dgate_v>;
@group(0) @binding(4) var<storage, read_write> dup: array<dup_v>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let at = first + i * LANES;
    if (at < p.vectors) {
      let g = vec4<f32>(gate[at]);
      let d = vec4<f32>(dy[at]);
      let e = exp(-abs(g));
      let s = select(e, vec4<f32>(1.0), g >= vec4<f32>(0.0)) / (1.0 + e);
      dgate[at] = dgate_v(d * vec4<f32>(up[at]) * s * (1.0 + g * (1.0 - s)));
      dup[at] = dup_v(d * g * s);
    }
  }
}
