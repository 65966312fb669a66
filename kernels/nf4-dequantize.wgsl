// nf4Dequantize: w[i] = level[code[i]] · absmax[i / block], for count elements from `at` on, a multiple of 8
// with 8-bit scales absmax[b] = map[scale[b]] · nested[b / nestedBlock] + offset, and the binding `absmax` holds nested
//   in codes (two a byte, the earlier element in the high nibble; bound from element codesAt on) absmax[B] scales[B] bytes
//   table: 16 levels, then the map of 256 and the offset   out w[count]
//   grid: one thread per 8 elements: one word of codes, within one block
//   numerics: f32, with product and sum rounded separately as on a processor: a fused multiply-add would differ in the
//   last bit, so the product passes through an integer that the compiler cannot fold (zero is 0)
//   source: QLoRA (2305.14314), appendix E
requires immediate_address_space;

const LANES: u32 = 64;
const MAP_AT: u32 = 16;
const OFFSET_AT: u32 = 272;

alias w_v = vec4<f32>;

struct Params { at: u32, count: u32, codesAt: u32, block: u32, nestedBlock: u32, isDouble: u32, zero: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> codes: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> absmax: array<f32>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read_write> w: array<w_v>;

fn rounded(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ p.zero); }

fn scaleOf(b: u32) -> f32 {
  if (p.isDouble == 0) { return absmax[b]; }
  let q = extractBits(scales[b / 4], b % 4 * 8, 8);
  return rounded(table[MAP_AT + q] * absmax[b / p.nestedBlock]) + table[OFFSET_AT];
}

/// The levels of four codes, by a tree of selections between uniform values: a software driver does a table lookup lane by
/// lane, which costs four times as much, and a GPU has arithmetic to spare here.
fn levelsOf(codes: vec4<u32>) -> vec4<f32> {
  let b0 = (codes & vec4(1u)) != vec4(0u);
  let b1 = (codes & vec4(2u)) != vec4(0u);
  let b2 = (codes & vec4(4u)) != vec4(0u);
  let b3 = (codes & vec4(8u)) != vec4(0u);
  return select(eightLevels(0, b0, b1, b2), eightLevels(8, b0, b1, b2), b3);
}

fn eightLevels(first: u32, b0: vec4<bool>, b1: vec4<bool>, b2: vec4<bool>) -> vec4<f32> {
  return select(fourLevels(first, b0, b1), fourLevels(first + 4, b0, b1), b2);
}

fn fourLevels(first: u32, b0: vec4<bool>, b1: vec4<bool>) -> vec4<f32> {
  let low = select(vec4(table[first]), vec4(table[first + 1]), b0);
  return select(low, select(vec4(table[first + 2]), vec4(table[first + 3]), b0), b1);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let i = ((wg.x + wg.y * nwg.x) * LANES + lane) * 8;
  if (i >= p.count) { return; }
  let c = codes[(p.at - p.codesAt + i) / 8];
  let s = scaleOf((p.at + i) / p.block);
  w[i / 4] = w_v(s * levelsOf(vec4(c >> 4, c, c >> 12, c >> 8)));
  if (i + 4 < p.count) { w[i / 4 + 1] = w_v(s * levelsOf(vec4(c >> 20, c >> 16, c >> 28, c >> 24))); }
}
