// copy: y[r · toRow + toAt + i] = x[r · fromRow + fromAt + i] for i < row and every row r
//   grid: one thread per vector that is copied, `size` of them
// pad: the same, with zeros in the rest of each row of y
//   grid: one thread per vector of y, `size` of them
//   in x   out y; types may differ; extents and places count vectors of WIDTH elements
//   why: a thread's division by the row's length is for a vector
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias x_v = vec4<x_t>;
// WIDTH=1: alias x_v = x_t;
alias y_t = f32;
alias y_v = vec4<y_t>;
// WIDTH=1: alias y_v = y_t;

struct Params { size: u32, row: u32, fromAt: u32, fromRow: u32, toAt: u32, toRow: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read_write> y: array<y_v>;

@compute @workgroup_size(LANES)
fn copy(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let at = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (at >= p.size) { return; }
  let r = at / p.row;
  let i = at % p.row;
  y[r * p.toRow + p.toAt + i] = y_v(x[r * p.fromRow + p.fromAt + i]);
}

@compute @workgroup_size(LANES)
fn pad(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let at = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (at >= p.size) { return; }
  let place = at % p.toRow;
  var value = x_v();
  if (place >= p.toAt && place - p.toAt < p.row) {
    value = x[at / p.toRow * p.fromRow + p.fromAt + place - p.toAt];
  }
  y[at] = y_v(value);
}
