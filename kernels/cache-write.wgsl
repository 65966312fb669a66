// cacheWrite: cache[b, offset + t, c] = x[b,t,c]
//   in x[B,T,C]   in/out cache[B,S,C]   grid: one thread per element of x
requires immediate_address_space;

const LANES: u32 = 64;

alias cache_t = f32;
alias x_t = f32;

struct Params { size: u32, s: u32, t: u32, c: u32, offset: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> cache: array<cache_t>;
@group(0) @binding(1) var<storage, read> x: array<x_t>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let at = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (at >= p.size) { return; }
  let row = p.t * p.c;
  cache[(at / row * p.s + p.offset) * p.c + at % row] = cache_t(x[at]);
}
