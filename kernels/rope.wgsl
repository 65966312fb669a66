// rope: rotates the pair (i, i + D/2) of each head by the angle of its position; direction -1 rotates back
//   in x[B,T,H,D] cos[T,D/2] sin[T,D/2]   out y[B,T,H,D]   grid: one thread per pair; four: per four pairs, D in multiples of 8
//   numerics: the tables come from the host, in double: WGSL's sin and cos are too coarse   source: Su et al. 2021
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias y_t = f32;
alias x4_v = vec4<f32>;
alias y4_v = vec4<f32>;

struct Params { pairs: u32, t: u32, h: u32, d: u32, direction: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read> cos: array<f32>;
@group(0) @binding(2) var<storage, read> sin: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<y_t>;
@group(0) @binding(4) var<storage, read> x4: array<x4_v>;
@group(0) @binding(5) var<storage, read> cos4: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> sin4: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> y4: array<y4_v>;

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

@compute @workgroup_size(LANES)
fn four(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let quad = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (quad >= p.pairs / 4u) { return; }
  let half = p.d / 8u;
  let i = quad % half;
  let row = quad / half;
  let angle = ((row / p.h) % p.t) * half + i;
  let c = cos4[angle];
  let s = p.direction * sin4[angle];
  let at = row * 2u * half + i;
  let lo = vec4<f32>(x4[at]);
  let hi = vec4<f32>(x4[at + half]);
  y4[at] = y4_v(lo * c - hi * s);
  y4[at + half] = y4_v(hi * c + lo * s);
}
