// mean: offset = Σ absmax / B, written into the table
// main: quantizes absmax - offset to 8 bits: nested[q] = its largest magnitude over a block of nestedBlock; scales[b] = how
//   many of the 255 midpoints between neighbouring entries of the map are strictly below (absmax - offset) · (1 / nested)
//   in absmax[B]   in/out table: 16 levels, a map of 256, the offset   out scales[B] bytes, nested[⌈B/nestedBlock⌉]
//   grid: mean: one workgroup; main: one thread per nested block
//   numerics: the f32 sum has the order of PyTorch on a processor of 8 lanes, so that states made there and here agree to the
//   bit: 32 interleaved sums in steps of 16; then the four sums that are 8 apart; then the remainder that fills no 8, and the
//   eight; of fewer than 8 values the first, the fifth to seventh, the second to fourth. Quotients are rounded correctly,
//   which those of WGSL need not be
//   source: QLoRA (2305.14314), "double quantization"
requires immediate_address_space;

const LANES: u32 = 32;

struct Params { blocks: u32, nestedBlock: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> absmax: array<f32>;
@group(0) @binding(1) var<storage, read_write> table: array<f32>;
@group(0) @binding(2) var<storage, read_write> scales: array<u32>;
@group(0) @binding(3) var<storage, read_write> nested: array<f32>;

const MAP_AT: u32 = 16;
const OFFSET_AT: u32 = 272;
const STEP: u32 = 16;

var<workgroup> sums: array<f32, LANES>;

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

/// Σ of every 32nd value: sums of 16, of 16 of those, and so on, so that the error does not grow with their number.
fn laneSum(lane: u32, count: u32) -> f32 {
  var levels = vec4<f32>();
  var i = 0u;
  while (i + STEP <= count) {
    for (var j = 0u; j < STEP; j++) { levels.x += absmax[(i + j) * LANES + lane]; }
    i += STEP;
    levels.y += levels.x;
    levels.x = 0.0;
    if (i / STEP % STEP != 0) { continue; }
    levels.z += levels.y;
    levels.y = 0.0;
    if (i / (STEP * STEP) % STEP != 0) { continue; }
    levels.w += levels.z;
    levels.z = 0.0;
  }
  for (; i < count; i++) { levels.x += absmax[i * LANES + lane]; }
  return ((levels.x + levels.y) + levels.z) + levels.w;
}

@compute @workgroup_size(LANES)
fn mean(@builtin(local_invocation_index) lane: u32) {
  let whole = p.blocks / LANES;
  sums[lane] = laneSum(lane, whole);
  workgroupBarrier();
  if (lane != 0) { return; }
  let eights = p.blocks / 8;
  var total = 0.0;
  if (eights == 0) { total = absmax[0]; }
  for (var i = max(eights * 8, 4); i < p.blocks; i++) { total += absmax[i]; }
  if (eights == 0) { for (var i = 1u; i < min(p.blocks, 4); i++) { total += absmax[i]; } }
  for (var l = 0u; l < 8; l++) {
    var sum = sums[l];
    for (var e = whole * 4; e < eights; e++) { sum += absmax[e * 8 + l]; }
    total += ((sum + sums[l + 8]) + sums[l + 16]) + sums[l + 24];
  }
  table[OFFSET_AT] = quotient(total, f32(p.blocks));
}

/// How many of the map's midpoints are below a value, by binary search: they ascend.
fn codeOf(scaled: f32) -> u32 {
  var low = 0u;
  var high = 255u;
  while (low < high) {
    let at = (low + high) / 2;
    if (scaled > (table[MAP_AT + at] + table[MAP_AT + at + 1]) * 0.5) { low = at + 1; } else { high = at; }
  }
  return low;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let q = (wg.x + wg.y * nwg.x) * LANES + lane;
  let first = q * p.nestedBlock;
  if (first >= p.blocks) { return; }
  let end = min(first + p.nestedBlock, p.blocks);
  let offset = table[OFFSET_AT];
  var largest = 0.0;
  for (var i = first; i < end; i++) { largest = max(largest, abs(absmax[i] - offset)); }
  nested[q] = largest;
  var inverse = 0.0;
  if (largest > 0.0) { inverse = quotient(1.0, largest); }
  for (var at = first; at < end; at += 4) {
    var word = 0u;
    for (var j = 0u; j < min(4, end - at); j++) { word |= codeOf((absmax[at + j] - offset) * inverse) << (j * 8); }
    scales[at / 4] = word;
  }
}
