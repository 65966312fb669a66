// copy: y[r · toRow + toAt + i] = x[r · fromRow + fromAt + i] for i < row and every row r
//   grid: one thread per element that is copied, `size` of them
// pad: the same, with zeros in the rest of each row of y
//   grid: one thread per element of y, `size` of them
//   in x   out y; rows of both may be of any length, types may differ
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias y_t = f32;

struct Params { size: u32, row: u32, fromAt: u32, fromRow: u32, toAt: u32, toRow: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> y: array<y_t>;

@compute @workgroup_size(LANES)
fn copy(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let at = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (at >= p.size) { return; }
  let r = at / p.row;
  let i = at % p.row;
  y[r * p.toRow + p.toAt + i] = y_t(x[r * p.fromRow + p.fromAt + i]);
}

@compute @workgroup_size(LANES)
fn pad(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let at = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (at >= p.size) { return; }
  let place = at % p.toRow;
  var value = x_t(0.0);
  if (place >= p.toAt && place - p.toAt < p.row) {
    value = x[at / p.toRow * p.fromRow + p.fromAt + place - p.toAt];
  }
  y[at] = y_t(value);
}
