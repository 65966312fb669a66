// rope: rotates the pair (i, i + D/2) of each head by the angle of its position; direction -1 rotates back
//   in x[B,T,H,D] cos[T,D/2] sin[T,D/2]   out y[B,T,H,D]   grid: one thread per pair
//   numerics: the tables come from the host, in double: WGSL's sin and cos are too coarse   source: Su et al. 2021
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias y_t = f32;

struct Params { pairs: u32, t: u32, h: u32, d: u32, direction: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read> cos: array<f32>;
@group(0) @binding(2) var<storage, read> sin: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<y_t>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let pair = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (pair >= p.pairs) { return; }
  let half = p.d / 2u;
  let i = pair % half;
  let row = pair / half; // (b · T + t) · H + h
  let angle = ((row / p.h) % p.t) * half + i;
  let c = cos[angle];
  let s = p.direction * sin[angle];
  let at = row * p.d + i;
  let lo = f32(x[at]);
  let hi = f32(x[at + half]);
  y[at] = y_t(lo * c - hi * s);
  y[at + half] = y_t(hi * c + lo * s);
}
