// transpose of the last two axes, both multiples of 4: y[b,c,r] = x[b,r,c]
//   in x[B,R,C]   out y[B,C,R]   grid: one workgroup per block of LANES / ACROSS · 4 rows and ACROSS · 4 · STEPS columns
//   why: a thread transposes 4 x 4 values in registers, so x is read and y written as vectors; a workgroup covers whole cache
//   lines of both, or with eight lanes above each other only of y
requires immediate_address_space;

const LANES: u32 = 64;
const ACROSS: u32 = 8; // threads side by side; the others are below them
const STEPS: u32 = 1; // of a thread, to the right

alias x_v = vec4<f32>;
alias y_v = vec4<f32>;

struct Params { batches: u32, rows: u32, cols: u32 } // rows and columns of x
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read_write> y: array<y_v>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
  let height = LANES / ACROSS * 4;
  let width = ACROSS * 4 * STEPS;
  let across = (p.cols + width - 1) / width;
  let down = (p.rows + height - 1) / height;
  let block = wg.x + wg.y * nwg.x;
  let batch = block / (across * down);
  let row = block / across % down * height + t / ACROSS * 4;
  if (batch >= p.batches || row >= p.rows) { return; }
  let first = block % across * width + t % ACROSS * 4;
  let step = p.cols / 4;
  for (var i = 0u; i < STEPS; i++) {
    let col = first + i * ACROSS * 4;
    if (col >= p.cols) { return; }
    let read = (batch * p.rows * p.cols + row * p.cols + col) / 4;
    let v = transpose(mat4x4(vec4<f32>(x[read]), vec4<f32>(x[read + step]),
                             vec4<f32>(x[read + 2 * step]), vec4<f32>(x[read + 3 * step])));
    let write = (batch * p.rows * p.cols + col * p.rows + row) / 4;
    y[write] = y_v(v[0]);
    y[write + p.rows / 4] = y_v(v[1]);
    y[write + p.rows / 2] = y_v(v[2]);
    y[write + p.rows / 4 * 3] = y_v(v[3]);
  }
}
