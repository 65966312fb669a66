// The elementwise family with broadcasting: operands that lack some of the output's axes repeat along them.
// main: y = apply(a, b)   compare: m = test(a, b), as bytes 0 and 1   choose: y = a where the byte of mask is not 0, else b
//   axes are joined runs, the last first: extents d0 .. d5; bit i of aAxes says that a has axis i, likewise b and mask;
//   an operand that was left out (hasA, hasB) counts as 0
//   in a b mask   out y[size] or m[size / 4]   grid: one thread per four outputs; the last may reach into the padding
//   numerics: f32 whatever the elements are
requires immediate_address_space;

const LANES: u32 = 64;

alias a_t = f32;
alias b_t = f32;
alias y_v = vec4<f32>;

struct Params {
  size: u32, rank: u32,
  d0: u32, d1: u32, d2: u32, d3: u32, d4: u32, d5: u32,
  aAxes: u32, bAxes: u32, maskAxes: u32,
  hasA: u32, hasB: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_t>;
@group(0) @binding(1) var<storage, read> b: array<b_t>;
@group(0) @binding(2) var<storage, read> mask: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<y_v>;
@group(0) @binding(4) var<storage, read_write> m: array<u32>;

fn apply(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> { return a + b; }
fn test(a: vec4<f32>, b: vec4<f32>) -> vec4<bool> { return a == b; }

/// Elements of a and b that stand at one output.
struct Source { a: u32, b: u32 }

fn extentOf(axis: u32) -> u32 {
  switch axis {
    case 0u: { return p.d0; }
    case 1u: { return p.d1; }
    case 2u: { return p.d2; }
    case 3u: { return p.d3; }
    case 4u: { return p.d4; }
    default: { return p.d5; }
  }
}

/// The element of an operand with the given axes.
fn elementOf(out: u32, axes: u32) -> u32 {
  var element = 0u;
  var stride = 1u;
  var rest = out;
  for (var axis = 0u; axis < p.rank; axis++) {
    let extent = extentOf(axis);
    if (((axes >> axis) & 1u) == 1u) {
      element += rest % extent * stride;
      stride *= extent;
    }
    rest /= extent;
  }
  return element;
}

/// The operands of four neighbouring outputs.
struct Four { a: vec4<f32>, b: vec4<f32> }

fn load(first: u32) -> Four {
  var four: Four;
  var source = Source(elementOf(first, p.aAxes), elementOf(first, p.bAxes));
  var at = first % p.d0;
  for (var i = 0u; i < 4u; i++) {
    if (p.hasA == 1u) { four.a[i] = f32(a[source.a]); }
    if (p.hasB == 1u) { four.b[i] = f32(b[source.b]); }
    at++;
    if (at < p.d0) { // the next element of the last axis
      source.a += p.aAxes & 1u;
      source.b += p.bAxes & 1u;
    } else {
      let next = min(first + i + 1u, p.size - 1u);
      source = Source(elementOf(next, p.aAxes), elementOf(next, p.bAxes));
      at = 0u;
    }
  }
  return four;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out * 4u >= p.size) { return; }
  let four = load(out * 4u);
  y[out] = y_v(apply(four.a, four.b));
}

@compute @workgroup_size(LANES)
fn compare(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out * 4u >= p.size) { return; }
  let four = load(out * 4u);
  m[out] = dot(vec4<u32>(test(four.a, four.b)), vec4<u32>(1u, 0x100u, 0x10000u, 0x1000000u));
}

@compute @workgroup_size(LANES)
fn choose(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let out = (wg.x + wg.y * nwg.x) * LANES + lane;
  if (out * 4u >= p.size) { return; }
  let four = load(out * 4u);
  var chosen: vec4<bool>;
  for (var i = 0u; i < 4u; i++) {
    let at = elementOf(min(out * 4u + i, p.size - 1u), p.maskAxes);
    chosen[i] = ((mask[at / 4u] >> (at % 4u * 8u)) & 0xffu) != 0u;
  }
  y[out] = y_v(select(four.b, four.a, chosen));
}
