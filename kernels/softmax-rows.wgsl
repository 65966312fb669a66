// softmax without a mask and its gradient, for software drivers, rows of a multiple of 4
// forward: y[n,c] = e^x / Σ e^x of a row
//   in x[N,C]   out y[N,C]
// backward: y = dx = yIn · (dy - Σ_c dy · yIn)
//   in yIn[N,C] dy[N,C]   out y[N,C]
//   grid: one subgroup of eight lanes per row, for both
//   why: no barrier and no workgroup memory, which such a driver pays for dearly; vectors are cheaper to load than their
//   values; maximum and sum come from one reading, the sum so far being rescaled when the maximum grows
//   numerics: as softmax.wgsl
enable subgroups;
requires immediate_address_space;

const LOWEST = -3.4028234663852886e38; // not above any value; finite, because WGSL may assume there are no infinities

alias x_v = vec4<f32>;
alias y_v = vec4<f32>;
alias yIn_v = vec4<f32>;
alias dy_v = vec4<f32>;

struct Params { n: u32, vectors: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read_write> y: array<y_v>;
@group(0) @binding(2) var<storage, read> yIn: array<yIn_v>;
@group(0) @binding(3) var<storage, read> dy: array<dy_v>;

/// e^(value - largest), for value <= largest.
fn shifted(value: vec4<f32>, largest: f32) -> vec4<f32> {
  return exp(2.0 * max(0.5 * value - 0.5 * largest, vec4(-60.0)));
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  let first = min(row, p.n - 1) * p.vectors; // a row past the end computes and does not store: subgroups stay whole
  var largest = LOWEST;
  var sum = 0.0;
  for (var i = lane; i < p.vectors; i += 8) {
    let v = vec4<f32>(x[first + i]);
    let most = max(largest, max(max(v.x, v.y), max(v.z, v.w)));
    sum = sum * shifted(vec4(largest), most).x + dot(shifted(v, most), vec4(1.0));
    largest = most;
  }
  let most = subgroupMax(largest);
  let scale = 1.0 / subgroupAdd(sum * shifted(vec4(largest), most).x);
  if (row >= p.n) { return; }
  for (var i = lane; i < p.vectors; i += 8) {
    y[first + i] = y_v(shifted(vec4<f32>(x[first + i]), most) * scale);
  }
}

@compute @workgroup_size(8)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  let first = min(row, p.n - 1) * p.vectors;
  var sum = vec4<f32>();
  for (var i = lane; i < p.vectors; i += 8) { sum += vec4<f32>(dy[first + i]) * vec4<f32>(yIn[first + i]); }
  let total = subgroupAdd(dot(sum, vec4(1.0)));
  if (row >= p.n) { return; }
  for (var i = lane; i < p.vectors; i += 8) {
    y[first + i] = y_v(vec4<f32>(yIn[first + i]) * (vec4<f32>(dy[first + i]) - total));
  }
}
