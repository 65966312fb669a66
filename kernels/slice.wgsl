// forward: y[first + (o,a,i)] = x[o, start + a, i], a < count   in x[outer,length,inner]   out y[first + outer · count · inner]
// backward: y[o, start + a, i] = x[o,a,i], zero elsewhere   in x[outer,count,inner]   out y[outer,length,inner]; no first
//   grid: one thread per output, `size` of them, for both
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias y_t = f32;

struct Params { size: u32, length: u32, inner: u32, start: u32, count: u32, first: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> y: array<y_t>;

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out >= p.size) { return; }
  let row = p.count * p.inner;
  y[p.first + out] = y_t(x[(out / row * p.length + p.start) * p.inner + out % row]);
}

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out >= p.size) { return; }
  let a = out / p.inner % p.length;
  var value = x_t(0.0);
  if (a >= p.start && a - p.start < p.count) {
    let outer = out / (p.length * p.inner);
    value = x[(outer * p.count + a - p.start) * p.inner + out % p.inner];
  }
  y[out] = y_t(value);
}
