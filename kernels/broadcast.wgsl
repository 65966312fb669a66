// broadcast: y[o,a,i] = x[o,i] for every a of the new axis
//   in x[outer · inner]   out y[outer,length,inner]   grid: one thread per output
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias y_t = f32;

struct Params { size: u32, length: u32, inner: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> y: array<y_t>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out >= p.size) { return; }
  y[out] = y_t(x[out / (p.length * p.inner) * p.inner + out % p.inner]);
}
