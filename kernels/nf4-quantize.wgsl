// nf4Quantize: absmax[b] = max |w| over block b; code[i] = how many of the 15 middles of neighbouring levels lie strictly
// below w[i] · (1 / absmax), two codes a byte, the earlier element in the high nibble
//   in w[N] table[16+] (levels first)   out codes[⌈N/2⌉] bytes, absmax[⌈N/block⌉]   grid: one thread per block of weights
//   a block of zeros gets code 7, whose level is 0, and so does what pads the last byte
//   numerics: the reciprocal is rounded correctly, which WGSL's division need not be, so codes are the same everywhere
//   source: QLoRA (2305.14314); the layout of bitsandbytes
requires immediate_address_space;

const LANES: u32 = 64;

alias w_t = f32;

struct Params { n: u32, block: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> w: array<w_t>;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;
@group(0) @binding(3) var<storage, read_write> absmax: array<f32>;

/// The leading 12 bits of a number: products of two such halves are exact.
fn head(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u); }

/// 1 / a, corrected by what the driver's quotient leaves of 1.
fn reciprocal(a: f32) -> f32 {
  let q = 1.0 / a;
  let qh = head(q);
  let ql = q - qh;
  let ah = head(a);
  let al = a - ah;
  return q + (((1.0 - qh * ah) - qh * al) - ql * ah - ql * al) * q;
}

fn codeOf(scaled: f32) -> u32 {
  var code = 0u;
  for (var i = 0u; i < 15; i++) { code += u32(scaled > (table[i] + table[i + 1]) * 0.5); }
  return code;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let b = (wg.x + wg.y * nwg.x) * LANES + lane;
  let first = b * p.block;
  if (first >= p.n) { return; }
  let end = min(first + p.block, p.n);
  var largest = 0.0;
  for (var i = first; i < end; i++) { largest = max(largest, abs(f32(w[i]))); }
  absmax[b] = largest;
  var inverse = 0.0;
  if (largest > 0.0) { inverse = reciprocal(largest); }
  for (var at = first; at < end; at += 8) { // one word of codes; blocks are multiples of 8
    var word = 0u;
    for (var j = 0u; j < 8; j++) {
      var code = 7u;
      if (at + j < end) { code = codeOf(f32(w[at + j]) * inverse); }
      word |= code << ((j ^ 1) * 4);
    }
    codes[at / 8] = word;
  }
}
