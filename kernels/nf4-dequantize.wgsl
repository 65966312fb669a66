// nf4Dequantize: w[i] = level[code[i]] · absmax[i / block], for count elements from `at` on, a multiple of 8
// with APART they are rows of `width` elements that lie `stride` apart, both multiples of 8: some columns of a matrix
// with 8-bit scales absmax[b] = map[scale[b]] · nested[b / nestedBlock] + offset, and the binding `absmax` holds nested
//   in codes (two a byte, the earlier element in the high nibble; bound from element codesAt on) absmax[B] scales[B] bytes
//   table: 16 levels, then the map of 256 and the offset   out w[count]
//   grid: ⌈count / 8 / (4 · LANES)⌉; a thread takes four words of eight codes, each within one block, LANES words apart:
//   neighbouring threads read and write neighbouring words, and all reads are under way before the first is used
//   numerics: f32, with product and sum rounded separately as on a processor: a fused multiply-add would differ in the
//   last bit, so the product passes through an integer that the compiler cannot fold (zero is 0)
//   source: QLoRA (2305.14314), appendix E
requires immediate_address_space;

const LANES: u32 = 256;
const MAP_AT: u32 = 16;
const OFFSET_AT: u32 = 272;
const APART: u32 = 0; // or 1

struct Params {
  at: u32, count: u32, width: u32, stride: u32, codesAt: u32, blockBits: u32, nestedBits: u32, isDouble: u32, zero: u32
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> codes: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> absmax: array<f32>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read_write> w: array<vec4<f32>>; // w f16: @group(0) @binding(4) var<storage, read_write> w: array<vec4<u32>>;

struct Word { i: u32, codes: u32, scale: f32 }

/// In workgroup memory, 16 levels are in 16 banks: threads that look up different levels never wait for each other. A table of
/// pairs of levels by byte would need half the lookups, but at several pairs a bank.
var<workgroup> levels: array<f32, 16>;

fn rounded(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ p.zero); }

fn scaleOf(b: u32) -> f32 {
  if (p.isDouble == 0) { return absmax[b]; }
  let q = extractBits(scales[b / 4], b % 4 * 8, 8);
  return rounded(table[MAP_AT + q] * absmax[b >> p.nestedBits]) + table[OFFSET_AT];
}

/// Word i of w; past the end, the last one.
fn fetch(i: u32) -> Word {
  var at = min(i * 8, p.count - 1);
  if (APART == 1) { at = at / p.width * p.stride + at % p.width; }
  return Word(i, codes[(p.at - p.codesAt + at) / 8], scaleOf((p.at + at) >> p.blockBits));
}

fn levelsOf(codes: vec4<u32>) -> vec4<f32> {
  let code = codes & vec4(15u);
  return vec4(levels[code.x], levels[code.y], levels[code.z], levels[code.w]);
}

fn decode(word: Word) {
  let at = word.i * 8;
  if (at >= p.count) { return; }
  let c = word.codes;
  let first = word.scale * levelsOf(vec4(c >> 4, c, c >> 12, c >> 8));
  let second = word.scale * levelsOf(vec4(c >> 20, c >> 16, c >> 28, c >> 24));
  w[at / 4] = first; // w f16:   w[at / 8] = vec4(bitcast<vec2<u32>>(vec4<f16>(first)), bitcast<vec2<u32>>(vec4<f16>(second)));
  if (at + 4 < p.count) { w[at / 4 + 1] = second; } // w f16:   // eight values are one store of 16 bytes
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  if (lane < 16) { levels[lane] = table[lane]; }
  let i = (wg.x + wg.y * nwg.x) * 4 * LANES + lane;
  let words = array(fetch(i), fetch(i + LANES), fetch(i + 2 * LANES), fetch(i + 3 * LANES));
  workgroupBarrier();
  decode(words[0]);
  decode(words[1]);
  decode(words[2]);
  decode(words[3]);
}
