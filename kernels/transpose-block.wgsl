// transpose of the last two axes, both multiples of 4: y[b,c,r] = x[b,r,c]
//   in x[B,R,C]   out y[B,C,R]   grid: one workgroup of 64 threads per 32 x 32 values, 4 x 4 a thread
//   why: a thread turns 4 x 4 values in registers, so both sides are read and written as vectors; a workgroup's rows are
//   whole cache lines on both sides
requires immediate_address_space;

alias x_v = vec4<f32>;
alias y_v = vec4<f32>;

struct Params { batches: u32, rows: u32, cols: u32 } // rows and columns of x
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read_write> y: array<y_v>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
  let across = (p.cols + 31) / 32;
  let down = (p.rows + 31) / 32;
  let block = wg.x + wg.y * nwg.x;
  let batch = block / (across * down);
  let row = block / across % down * 32 + t / 8 * 4;
  let col = block % across * 32 + t % 8 * 4;
  if (batch >= p.batches || row >= p.rows || col >= p.cols) { return; }
  let read = (batch * p.rows * p.cols + row * p.cols + col) / 4;
  let step = p.cols / 4;
  let v = transpose(mat4x4(vec4<f32>(x[read]), vec4<f32>(x[read + step]),
                           vec4<f32>(x[read + 2 * step]), vec4<f32>(x[read + 3 * step])));
  let write = (batch * p.rows * p.cols + col * p.rows + row) / 4;
  y[write] = y_v(v[0]);
  y[write + p.rows / 4] = y_v(v[1]);
  y[write + p.rows / 2] = y_v(v[2]);
  y[write + p.rows / 4 * 3] = y_v(v[3]);
}
