// rope: rotates the pair (i, i + D/2) of each head by the angle of its position; direction -1 rotates back
//   in x[B,T,H,D] cos[T,D/2] sin[T,D/2]   out y[B,T,H,D]
//   grid: one thread per vector of angles of a position and HEADS · rounds of its heads; the first is at position `first`
//   why: angles are read, and their position computed, once for several heads, whose loads are all in flight at once
//   numerics: the host computes the tables in double, since WGSL's sin and cos are too coarse   source: Su et al. 2021
requires immediate_address_space;

const LANES: u32 = 64;
const HEADS: u32 = 4;

alias x_v = vec4<f32>;
// WIDTH=1: alias x_v = f32;
alias y_v = vec4<f32>;
// WIDTH=1: alias y_v = f32;
alias value = vec4<f32>; // the type of intermediate values
// WIDTH=1: alias value = f32;

struct Params { threads: u32, t: u32, first: u32, h: u32, half: u32, parts: u32, rounds: u32, direction: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read> cos: array<value>;
@group(0) @binding(2) var<storage, read> sin: array<value>;
@group(0) @binding(3) var<storage, read_write> y: array<y_v>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let thread = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (thread >= p.threads) { return; }
  let i = thread % p.half;
  let part = thread / p.half; // (b · T + t) · parts + index of the group of heads
  let row = part / p.parts;
  let angle = (row + p.first) % p.t * p.half + i;
  let c = cos[angle];
  let s = p.direction * sin[angle];
  var head = part % p.parts * p.rounds * HEADS;
  for (var round = 0u; round < p.rounds; round++) {
    let first = row * p.h * 2 * p.half + i;
    var lo: array<value, HEADS>;
    var hi: array<value, HEADS>;
    for (var j = 0u; j < HEADS; j++) {
      let at = first + min(head + j, p.h - 1) * 2 * p.half;
      lo[j] = value(x[at]);
      hi[j] = value(x[at + p.half]);
    }
    for (var j = 0u; j < HEADS; j++) {
      if (head + j < p.h) {
        let at = first + (head + j) * 2 * p.half;
        y[at] = y_v(lo[j] * c - hi[j] * s);
        y[at + p.half] = y_v(hi[j] * c + lo[j] * s);
      }
    }
    head += HEADS;
  }
}
