// int8 blocks: codes[i] = 128 + round(x[i] / scales[i / 64]), scales = the power of two with 127 · scale >= max |x| of the block
//   in, out x[N], codes[N] (four a word), scales[⌈N/64⌉]   grid: one thread per block to quantize, per word of codes to dequantize
//   numerics: a power of two divides exactly and round() takes ties to even, so codes are the same everywhere
//   source: shared exponents as in the OCP Microscaling formats (MXINT8), here over 64 values
requires immediate_address_space;

const LANES: u32 = 64;
const BLOCK: u32 = 64;
const TINY: f32 = 0x1p-100; // blocks below it become zero: their scale would be subnormal

struct Params { n: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;
@group(0) @binding(3) var<storage, read> codesIn: array<u32>;
@group(0) @binding(4) var<storage, read> scalesIn: array<f32>;
@group(0) @binding(5) var<storage, read_write> values: array<f32>;

@compute @workgroup_size(LANES)
fn quantize(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
            @builtin(local_invocation_index) lane: u32) {
  let b = (wg.x + wg.y * nwg.x) * LANES + lane;
  let first = b * BLOCK;
  if (first >= p.n) { return; }
  let end = min(first + BLOCK, p.n);
  var largest = 0.0;
  for (var i = first; i < end; i++) { largest = max(largest, abs(x[i])); }
  var scale = 0.0;
  var inverse = 0.0;
  if (largest >= TINY) {
    scale = bitcast<f32>(bitcast<u32>(largest) & 0x7f800000u) * 0x1p-6;
    if (largest > 127.0 * scale) { scale *= 2.0; }
    inverse = bitcast<f32>((254u << 23) - bitcast<u32>(scale));
  }
  scales[b] = scale;
  for (var at = first; at < end; at += 4) {
    var word = 0u;
    for (var j = 0u; j < 4; j++) {
      var code = 128u;
      if (at + j < end) { code = u32(128.0 + round(x[at + j] * inverse)); }
      word |= code << (8 * j);
    }
    codes[at / 4] = word;
  }
}

@compute @workgroup_size(LANES)
fn dequantize(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
              @builtin(local_invocation_index) lane: u32) {
  let at = 4 * ((wg.x + wg.y * nwg.x) * LANES + lane);
  if (at >= p.n) { return; }
  let word = codesIn[at / 4];
  let scale = scalesIn[at / BLOCK];
  for (var j = 0u; j < min(4u, p.n - at); j++) {
    values[at + j] = (f32((word >> (8 * j)) & 255u) - 128.0) * scale;
  }
}
