// clipFactor: norm = √sumSquares, factor = min(1, maxNorm / (norm + 1e-6))
//   in sumSquares[1]   out factor[1] norm[1]   grid: one thread   source: PyTorch clip_grad_norm_
requires immediate_address_space;

struct Params { maxNorm: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> sumSquares: array<f32>;
@group(0) @binding(1) var<storage, read_write> factor: array<f32>;
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;

@compute @workgroup_size(1)
fn main() {
  norm[0] = sqrt(sumSquares[0]);
  factor[0] = min(1.0, p.maxNorm / (norm[0] + 1e-6));
}
