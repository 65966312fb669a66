// forward: y[o,j,i] = x[o, ids[o,j,i], i]; 0 where the id is outside 0 .. length-1
//   in x[outer,length,inner] ids[outer,count,inner]   out y[outer,count,inner]
// backward: y[o,a,i] = Σ_j x[o,j,i] over j with ids[o,j,i] = a
//   in x[outer,count,inner] (dy) ids[outer,count,inner]   out y[outer,length,inner] (dx)
//   grid: one thread per output, `size` of them, for both
//   numerics: terms are added in order of j, so results are the same on every run
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias y_t = f32;

struct Params { size: u32, length: u32, inner: u32, count: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read> ids: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<y_t>;

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out >= p.size) { return; }
  let id = u32(ids[out]); // a negative id becomes a large one
  var value = x_t();
  if (id < p.length) { value = x[(out / (p.count * p.inner) * p.length + id) * p.inner + out % p.inner]; }
  y[out] = y_t(value);
}

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out >= p.size) { return; }
  let a = i32(out / p.inner % p.length);
  let first = out / (p.length * p.inner) * p.count * p.inner + out % p.inner;
  var sum = 0.0;
  for (var j = 0u; j < p.count; j++) {
    let at = first + j * p.inner;
    if (ids[at] == a) { sum += f32(x[at]); }
  }
  y[out] = y_t(sum);
}
