// The end of a product whose sum was cut into parts: y[m,n] = Σ_part parts[part,m,n] (+ bias[n]) (+ y[m,n]), parts in order
//   in parts[P,M,N] bias[N]   out y[M,N] from yAt on, rows yRow apart; n, yAt and yRow are multiples of 4
//   grid: one workgroup per LANES vectors of four of y
//   why: few blocks of y with a long sum leave most of a GPU idle; the parts of that sum are blocks as well. Four parts are on
//   their way from memory at a time. A fixed order, so that the same operands give the same bits.
//   numerics: f32, rounded once where y is f16
requires immediate_address_space;

const LANES: u32 = 64;

alias bias_t = f32;
alias y_v = vec4<f32>;

struct Params { vectors: u32, n: u32, yAt: u32, yRow: u32, count: u32, accumulate: u32, hasBias: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> bias: array<bias_t>;
@group(0) @binding(2) var<storage, read_write> y: array<y_v>;

/// The sum of all parts of vector i.
fn sumOf(i: u32) -> vec4<f32> {
  var sum = vec4<f32>();
  var part = 0u;
  for (; part + 4 <= p.count; part += 4) {
    let at = part * p.vectors + i;
    let v0 = parts[at];
    let v1 = parts[at + p.vectors];
    let v2 = parts[at + 2 * p.vectors];
    let v3 = parts[at + 3 * p.vectors];
    sum = sum + v0 + v1 + v2 + v3;
  }
  for (; part < p.count; part++) { sum += parts[part * p.vectors + i]; }
  return sum;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let i = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (i >= p.vectors) { return; }
  var v = sumOf(i);
  let col = i * 4 % p.n;
  if (p.hasBias != 0) {
    let at = p.yAt + col;
    v += vec4(f32(bias[at]), f32(bias[at + 1]), f32(bias[at + 2]), f32(bias[at + 3]));
  }
  let to = (p.yAt + i * 4 / p.n * p.yRow + col) / 4;
  if (p.accumulate != 0) { v += vec4<f32>(y[to]); }
  y[to] = y_v(v);
}
