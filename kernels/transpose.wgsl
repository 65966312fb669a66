// transpose: y[i0,i1,...] = x[start + Σ_a i_a · s_a], any permutation of axes
//   axes of y are counted from the last: extents d0 .. d5 of this window, and s0 .. s5 the stride in x of each
//   where the window has only a part of one axis, its elements are runs in y, `gap` apart from `first` on
//   in x[N]   out y[first + d5 · ... · d0 and gaps]   grid: one thread per output
requires immediate_address_space;

const LANES: u32 = 64;

alias x_t = f32;
alias y_t = f32;

struct Params {
  start: u32, first: u32, run: u32, gap: u32,
  d0: u32, d1: u32, d2: u32, d3: u32, d4: u32, d5: u32,
  s0: u32, s1: u32, s2: u32, s3: u32, s4: u32, s5: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_t>;
@group(0) @binding(1) var<storage, read_write> y: array<y_t>;

/// Extent and stride of an axis.
fn axisOf(axis: u32) -> vec2<u32> {
  switch axis {
    case 0u: { return vec2<u32>(p.d0, p.s0); }
    case 1u: { return vec2<u32>(p.d1, p.s1); }
    case 2u: { return vec2<u32>(p.d2, p.s2); }
    case 3u: { return vec2<u32>(p.d3, p.s3); }
    case 4u: { return vec2<u32>(p.d4, p.s4); }
    default: { return vec2<u32>(p.d5, p.s5); }
  }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out >= p.d0 * p.d1 * p.d2 * p.d3 * p.d4 * p.d5) { return; }
  var rest = out;
  var source = p.start;
  for (var i = 0u; rest > 0; i++) {
    let axis = axisOf(i);
    source += rest % axis.x * axis.y;
    rest /= axis.x;
  }
  y[p.first + out + out / p.run * p.gap] = y_t(x[source]);
}
