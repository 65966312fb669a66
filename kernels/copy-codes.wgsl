// copyCodes: to[i] = from[i], a word of four bytes at a time
//   in source[N] bytes   out copy[N] bytes   grid: one thread per word
requires immediate_address_space;

const LANES: u32 = 64;

struct Params { words: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> source: array<u32>;
@group(0) @binding(1) var<storage, read_write> copy: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let i = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (i < p.words) { copy[i] = source[i]; }
}
