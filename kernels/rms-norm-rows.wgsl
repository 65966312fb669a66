// rmsNorm and its gradient for software drivers, rows of a multiple of 4 (rms-norm.wgsl has the formulas)
// forward: y[n,c] = x[n,c] · rstd[n] · gain[c]
//   in x[N,C] gain[C]   out y[N,C] rstd[N]
// backward_x: y = dx = rstd · (g - x · rstd² · mean_c(g · x)),  g = dy · gain
//   in x[N,C] gain[C] rstdIn[N] dy[N,C]   out y[N,C]
//   grid: one subgroup of eight lanes per row, for both
//   why: no barrier and no workgroup memory, which such a driver pays for dearly; vectors are cheaper to load than their values
//   numerics: sums stay f32 whatever the elements are
enable subgroups;
requires immediate_address_space;

alias x_v = vec4<f32>;
alias gain_v = vec4<f32>;
alias y_v = vec4<f32>;
alias dy_v = vec4<f32>;

struct Params { n: u32, vectors: u32, eps: f32, hasGain: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read> gain: array<gain_v>;
@group(0) @binding(2) var<storage, read_write> y: array<y_v>;
@group(0) @binding(3) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(4) var<storage, read> rstdIn: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<dy_v>;

fn gainAt(i: u32) -> vec4<f32> {
  if (p.hasGain == 0) { return vec4(1.0); }
  return vec4<f32>(gain[i]);
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  let first = min(row, p.n - 1) * p.vectors; // a row past the end computes and does not store: subgroups stay whole
  var squares = vec4<f32>();
  for (var i = lane; i < p.vectors; i += 8) {
    let v = vec4<f32>(x[first + i]);
    squares += v * v;
  }
  let r = inverseSqrt(subgroupAdd(dot(squares, vec4(1.0))) / f32(4 * p.vectors) + p.eps);
  if (row >= p.n) { return; }
  if (lane == 0) { rstd[row] = r; }
  for (var i = lane; i < p.vectors; i += 8) { y[first + i] = y_v(vec4<f32>(x[first + i]) * r * gainAt(i)); }
}

@compute @workgroup_size(8)
fn backward_x(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
              @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  let first = min(row, p.n - 1) * p.vectors;
  var sum = vec4<f32>();
  for (var i = lane; i < p.vectors; i += 8) {
    sum += vec4<f32>(dy[first + i]) * gainAt(i) * vec4<f32>(x[first + i]);
  }
  let r = rstdIn[min(row, p.n - 1)];
  let mean = r * r * subgroupAdd(dot(sum, vec4(1.0))) / f32(4 * p.vectors);
  if (row >= p.n) { return; }
  for (var i = lane; i < p.vectors; i += 8) {
    y[first + i] = y_v(r * (vec4<f32>(dy[first + i]) * gainAt(i) - vec4<f32>(x[first + i]) * mean));
  }
}
