// matmul for GPUs where y has few rows, as in decoding token by token: y[m,n] = Σ_k a[m,k] b[n,k] (+ bias[n])
//   in a[M,K] b[N,K] bias[N]   out y[M,N], from column yAt on, with row stride yRow
//   grid: [⌈N / COLS⌉, M, 1], LANES threads share COLS columns
//   why: b is read once per row of y, and threads read neighbouring words; a tile would leave most threads idle
//   numerics: sums are f32 for every element type, from LANES partial sums added as a tree
requires immediate_address_space;

const LANES: u32 = 64;
const COLS: u32 = 4;

alias a_t = f32;
alias b_t = f32;
alias bias_t = f32;
alias y_t = f32;

struct Params { n: u32, k: u32, yAt: u32, yRow: u32, accumulate: u32, hasBias: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_t>;
@group(0) @binding(1) var<storage, read> b: array<b_t>;
@group(0) @binding(2) var<storage, read> bias: array<bias_t>;
@group(0) @binding(3) var<storage, read_write> y: array<y_t>;

var<workgroup> partial: array<vec4<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let n = wg.x * COLS;
  let at = min(vec4(n, n + 1, n + 2, n + 3), vec4(p.n - 1)) * p.k;
  var sum = vec4<f32>();
  for (var k = lane; k < p.k; k += LANES) {
    let x = f32(a[wg.y * p.k + k]);
    sum += x * vec4(f32(b[at.x + k]), f32(b[at.y + k]), f32(b[at.z + k]), f32(b[at.w + k]));
  }
  partial[lane] = sum;
  workgroupBarrier();
  for (var stride = LANES / 2; stride > 0; stride /= 2) {
    if (lane < stride) { partial[lane] += partial[lane + stride]; }
    workgroupBarrier();
  }
  if (lane >= COLS || n + lane >= p.n) { return; }
  let i = p.yAt + wg.y * p.yRow + n + lane;
  var v = partial[0][lane];
  if (p.hasBias != 0) { v += f32(bias[p.yAt + n + lane]); }
  if (p.accumulate != 0) { v += f32(y[i]); }
  y[i] = y_t(v);
}
