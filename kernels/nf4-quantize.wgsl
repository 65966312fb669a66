// nf4Quantize: absmax[b] = max |w| over block b; code[i] = how many of the 15 midpoints between neighbouring levels are
//   strictly below w[i] · (1 / absmax), two codes a byte, the earlier element in the high nibble
//   in w[N] table[16+] (levels first)   out codes[⌈N/2⌉] bytes, absmax[⌈N/block⌉]   grid: one thread per block of weights
//   a block of zeros gets code 7, whose level is 0; so does the padding of the last byte
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

/// The remainder s - q · a in units of the last places of both, exact if q is within a few units in the last place of s / a:
/// the difference of two 48-bit products that agree in all but the lowest 32 bits, which wrap.
fn remainder(s: u32, q: u32, a: u32) -> i32 {
  let shift = 150 + (s >> 23) - (q >> 23) - (a >> 23);
  return bitcast<i32>((mantissa(s) << (shift & 31)) - mantissa(q) * mantissa(a));
}

fn mantissa(bits: u32) -> u32 { return (bits & 0x7fffff) | 0x800000; }

/// s / a of positive numbers, correctly rounded: the driver's quotient is corrected unit by unit, in integers, because compilers
/// assume of floats that s - (s / a) · a is 0.
fn quotient(s: f32, a: f32) -> f32 {
  var q = bitcast<u32>(s / a);
  for (var i = 0; i < 8; i++) {
    if (s == 0.0 || q >> 23 == 0 || q >> 23 >= 255) { break; } // 0, subnormal or infinite
    let left = remainder(bitcast<u32>(s), q, bitcast<u32>(a));
    let unit = bitcast<i32>(mantissa(bitcast<u32>(a)));
    if (2 * left > unit) { q++; }
    else if (select(2, 4, mantissa(q) == 0x800000) * left < -unit) { q--; } // just below a power of two, a unit in the last place is half as large
    else { break; }
  }
  return bitcast<f32>(q);
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
  if (largest > 0.0) { inverse = quotient(1.0, largest); }
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
