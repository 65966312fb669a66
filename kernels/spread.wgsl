// elementwise ops with broadcasting: operands that lack some of the output's axes repeat along them
// main: y = apply(a, b)   compare: m = test(a, b), as bytes 0 and 1   choose: y = a where the byte of mask is not 0, else b
//   axes are counted from the last, with adjacent ones merged: extents d0 .. d5; bit i of aAxes is set if a has axis i,
//   likewise b and mask; an absent operand (hasA, hasB) counts as 0
//   in a b mask   out y[size] or m[size / 4]   grid: one workgroup per LANES · VECTORS groups of four outputs; the last may reach
//   into the padding
//   why: where d0 is a multiple of 4 (FOURS), four outputs share all indices but the last, and their operands are a vector
//   or one element; otherwise the index is decomposed again where a row ends
//   numerics: f32 for every element type
requires immediate_address_space;

const LANES: u32 = 64;
const VECTORS: u32 = 1; // per thread, LANES apart
const FOURS: u32 = 0;

alias a_v = vec4<f32>;
alias b_v = vec4<f32>;
alias y_v = vec4<f32>;

struct Params {
  size: u32, rank: u32,
  d0: u32, d1: u32, d2: u32, d3: u32, d4: u32, d5: u32,
  aAxes: u32, bAxes: u32, maskAxes: u32,
  hasA: u32, hasB: u32,
  scalar: f32, other: f32, // that a row may use
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_v>;
@group(0) @binding(1) var<storage, read> b: array<b_v>;
@group(0) @binding(2) var<storage, read> mask: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<y_v>;
@group(0) @binding(4) var<storage, read_write> m: array<u32>;

fn apply(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> { return a + b; }
fn test(a: vec4<f32>, b: vec4<f32>) -> vec4<bool> { return a == b; }

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

/// Positions of the elements of a, b and mask for one output.
fn sourceOf(out: u32) -> vec3<u32> {
  let axes = vec3(p.aAxes, p.bAxes, p.maskAxes);
  var source = vec3(0u);
  var stride = vec3(1u);
  var rest = out;
  for (var axis = 0u; axis + 1u < p.rank; axis++) {
    let extent = extentOf(axis);
    let above = rest / extent;
    let has = (axes >> vec3(axis)) & vec3(1u);
    source += has * stride * (rest - above * extent);
    stride = select(stride, stride * extent, has == vec3(1u));
    rest = above;
  }
  return source + ((axes >> vec3(p.rank - 1u)) & vec3(1u)) * stride * rest;
}

fn elementA(at: u32) -> f32 { return f32(a[at / 4u][at % 4u]); }
fn elementB(at: u32) -> f32 { return f32(b[at / 4u][at % 4u]); }
fn elementMask(at: u32) -> u32 { return (mask[at / 4u] >> (at % 4u * 8u)) & 0xffu; }

/// The operands of four neighbouring outputs.
struct Four { a: vec4<f32>, b: vec4<f32> }

fn oneOrFour(vector: vec4<f32>, element: u32, axes: u32) -> vec4<f32> {
  return select(vec4(vector[element % 4u]), vector, (axes & 1u) == 1u);
}

/// They are contiguous in an operand that has the last axis, and a single element in another.
fn loadTogether(first: u32) -> Four {
  let source = sourceOf(first);
  var four: Four;
  if (p.hasA == 1u) { four.a = oneOrFour(vec4<f32>(a[source.x / 4u]), source.x, p.aAxes); }
  if (p.hasB == 1u) { four.b = oneOrFour(vec4<f32>(b[source.y / 4u]), source.y, p.bAxes); }
  return four;
}

fn loadApart(first: u32) -> Four {
  var four: Four;
  var source = sourceOf(first);
  var at = first % p.d0;
  for (var i = 0u; i < 4u; i++) {
    if (p.hasA == 1u) { four.a[i] = elementA(source.x); }
    if (p.hasB == 1u) { four.b[i] = elementB(source.y); }
    at++;
    if (at < p.d0) { // the next element of the last axis
      source += vec3(p.aAxes, p.bAxes, p.maskAxes) & vec3(1u);
    } else {
      source = sourceOf(min(first + i + 1u, p.size - 1u));
      at = 0u;
    }
  }
  return four;
}

/// Bytes of the mask at four neighbouring outputs.
fn loadMask(first: u32) -> vec4<u32> {
  if (FOURS == 1u) {
    let source = sourceOf(first).z;
    if ((p.maskAxes & 1u) == 1u) { return (vec4(mask[source / 4u]) >> vec4(0u, 8u, 16u, 24u)) & vec4(0xffu); }
    return vec4(elementMask(source));
  }
  var bytes: vec4<u32>;
  for (var i = 0u; i < 4u; i++) { bytes[i] = elementMask(sourceOf(min(first + i, p.size - 1u)).z); }
  return bytes;
}

fn load(first: u32) -> Four {
  if (FOURS == 1u) { return loadTogether(first); }
  return loadApart(first);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let out = first + i * LANES;
    if (out * 4u >= p.size) { return; }
    let four = load(out * 4u);
    y[out] = y_v(apply(four.a, four.b));
  }
}

@compute @workgroup_size(LANES)
fn compare(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let out = first + i * LANES;
    if (out * 4u >= p.size) { return; }
    let four = load(out * 4u);
    m[out] = dot(vec4<u32>(test(four.a, four.b)), vec4<u32>(1u, 0x100u, 0x10000u, 0x1000000u));
  }
}

@compute @workgroup_size(LANES)
fn choose(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let first = (wg.x + wg.y * nwg.x) * LANES * VECTORS + lane;
  for (var i = 0u; i < VECTORS; i++) {
    let out = first + i * LANES;
    if (out * 4u >= p.size) { return; }
    let four = load(out * 4u);
    y[out] = y_v(select(four.b, four.a, loadMask(out * 4u) != vec4(0u)));
  }
}
