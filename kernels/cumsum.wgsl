// cumsum: y[o,a,i] = Σ x[o,b,i] over b <= a, or over b >= a in reverse, with x as [outer, length, inner] around the axis
//   in x[outer,length,inner]   out y[outer,length,inner]   grid: one workgroup per line (o,i), `lines` of them
//   why: each thread sums a range of the line, adds the sums of the threads before it, and passes over its range again
//   numerics: f32 for every element type
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias y_t = f32;

struct Params { lines: u32, length: u32, inner: u32, reverse: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> y: array<y_t>;

var<workgroup> runs: array<f32, LANES>;

/// Position along the line of the a-th element in the order of summation.
fn along(a: u32) -> u32 {
  if (p.reverse == 1u) { return p.length - 1u - a; }
  return a;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let line = wg.x + wg.y * nwg.x;
  if (line >= p.lines) { return; }
  let at = (line / p.inner) * p.length * p.inner + line % p.inner;
  let run = (p.length + LANES - 1u) / LANES;
  let first = lane * run;
  let end = min(first + run, p.length);
  var sum = 0.0;
  for (var a = first; a < end; a++) { sum += f32(x[at + along(a) * p.inner]); }
  runs[lane] = sum;
  workgroupBarrier();
  var total = 0.0;
  for (var other = 0u; other < lane; other++) { total += runs[other]; }
  for (var a = first; a < end; a++) {
    let element = at + along(a) * p.inner;
    total += f32(x[element]);
    y[element] = y_t(total);
  }
}
