// split-K reduction of matmul: y[m,n] = Σ_split partials[split,m,n] (+ bias[n]) (+ y[m,n]), summed in the order of the splits
//   in partials[splits,batches·M,N] (written by matmul-block or matmul-matrix) bias[N]   out y, from yAt on with row stride yRow
//   grid: LANES vectors of y per workgroup; N, yAt and yRow are multiples of 4
//   why: each partial is read once, four loads in flight per thread. The order is fixed, so equal operands give equal bits,
//   which atomic additions would not.
//   numerics: f32, rounded once where y is f16
requires immediate_address_space;

const LANES: u32 = 64;

alias bias_t = f32;
alias y_v = vec4<f32>;

struct Params { vectors: u32, n: u32, yAt: u32, yRow: u32, splits: u32, accumulate: u32, hasBias: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> bias: array<bias_t>;
@group(0) @binding(2) var<storage, read_write> y: array<y_v>;

/// The sum of vector i over all splits.
fn sumOf(i: u32) -> vec4<f32> {
  var sum = vec4<f32>();
  var split = 0u;
  for (; split + 4 <= p.splits; split += 4) {
    let at = split * p.vectors + i;
    let v0 = partials[at];
    let v1 = partials[at + p.vectors];
    let v2 = partials[at + 2 * p.vectors];
    let v3 = partials[at + 3 * p.vectors];
    sum = sum + v0 + v1 + v2 + v3;
  }
  for (; split < p.splits; split++) { sum += partials[split * p.vectors + i]; }
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
