// clipFactor: norm = √Σ sumSquares, factor = min(1, maxNorm / (norm + 1e-6))
//   in sumSquares[n]   out factor[1] norm[1]   grid: one workgroup   source: PyTorch clip_grad_norm_
//   numerics: f32, one partial sum per thread, then a tree
requires immediate_address_space;

const LANES: u32 = 64;

struct Params { maxNorm: f32, n: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> sumSquares: array<f32>;
@group(0) @binding(1) var<storage, read_write> factor: array<f32>;
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;

var<workgroup> partial: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
  var sum = 0.0;
  for (var i = lane; i < p.n; i += LANES) { sum += sumSquares[i]; }
  partial[lane] = sum;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { partial[lane] += partial[lane + stride]; }
    workgroupBarrier();
  }
  if (lane == 0u) {
    norm[0] = sqrt(partial[0]);
    factor[0] = min(1.0, p.maxNorm / (norm[0] + 1e-6));
  }
}
