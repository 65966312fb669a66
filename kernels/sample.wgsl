// sampleLogits: id[first + n] = the token that the number u of row n falls on, along the sums of w over the kept v in order
//   z = logits, those of recent ids shrunk by the repetition penalty   w[v] = e^((z[v] - max z) / temperature)
//   kept: z[v] >= threshold, the largest of those of top-k, top-p and min-p, each exact to the bit pattern of a z
//   u = (r / 2^9 + 1/2) / 2^23, r the word number firstWord + n of Philox 4x32-10 under (seed, stream), as in random.wgsl
//   in logits[N,V] recent[N,R]   workspace z[N,V]   out id[first + N]   grid: one workgroup per row, LANES threads share it
//   why: no sort; a threshold is found bit by bit, from the highest, in the order of the bit patterns (32 passes over z for
//   each of top-k and top-p)
//   numerics: the penalty and the thresholds of top-k and min-p are single, correctly rounded operations, the
//   same on every device; sums of w are f32, so devices may differ where u or top-p meets a border of those sums
requires immediate_address_space;

const LANES: u32 = 256;
const LOWEST = -3.4028234663852886e38; // not above any value; finite, because WGSL may assume there are no infinities

alias logits_t = f32;

/// inverseTemperature 0 means greedy choice. topK 0, topP 1 and a depth (of min-p, below the largest z) < 0 mean no cut.
struct Params {
  n: u32, v: u32, r: u32, first: u32, firstWord: u32, seed: u32, stream: u32, topK: u32,
  topP: f32, depth: f32, inverseTemperature: f32, penalty: f32, inversePenalty: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> logits: array<logits_t>;
@group(0) @binding(1) var<storage, read> recent: array<i32>;
@group(0) @binding(2) var<storage, read_write> z: array<f32>;
@group(0) @binding(3) var<storage, read_write> id: array<i32>;

var<workgroup> partial: array<f32, LANES>;
var<workgroup> counts: array<u32, LANES>;

fn reduceSum(lane: u32, value: f32) -> f32 {
  partial[lane] = value;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { partial[lane] += partial[lane + stride]; }
    workgroupBarrier();
  }
  let total = partial[0];
  workgroupBarrier();
  return total;
}

fn reduceCount(lane: u32, value: u32) -> u32 {
  counts[lane] = value;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { counts[lane] += counts[lane + stride]; }
    workgroupBarrier();
  }
  let total = counts[0];
  workgroupBarrier();
  return total;
}

fn reduceMax(lane: u32, value: f32) -> f32 {
  partial[lane] = value;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { partial[lane] = max(partial[lane], partial[lane + stride]); }
    workgroupBarrier();
  }
  let largest = partial[0];
  workgroupBarrier();
  return largest;
}

/// The upper 32 bits of a product; WGSL has no 64-bit integers.
fn mulHigh(a: u32, b: u32) -> u32 {
  let a0 = a & 0xffff;
  let a1 = a >> 16;
  let b0 = b & 0xffff;
  let b1 = b >> 16;
  let middle = a1 * b0 + ((a0 * b0) >> 16);
  let carry = (middle & 0xffff) + a0 * b1;
  return a1 * b1 + (middle >> 16) + (carry >> 16);
}

fn uniformOf(word: u32) -> f32 {
  var c = vec4(word / 4u, 0, p.stream, 0);
  var key = vec2(p.seed, 0);
  for (var round = 0; round < 10; round++) {
    c = vec4(mulHigh(0xcd9e8d57u, c.z) ^ c.y ^ key.x, 0xcd9e8d57u * c.z,
             mulHigh(0xd2511f53u, c.x) ^ c.w ^ key.y, 0xd2511f53u * c.x);
    key += vec2(0x9e3779b9u, 0xbb67ae85u);
  }
  return (f32(c[word % 4u] >> 9) + 0.5) * 0x1p-23;
}

/// Integer keys in the order of the values; both zeros have the same key.
fn keyOf(value: f32) -> u32 {
  let bits = bitcast<u32>(value);
  if (value == 0.0) { return 0x80000000u; }
  return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

/// Computed as 2 · (a/2 - b/2), so that no difference overflows.
fn weightOf(value: f32, top: f32) -> f32 {
  return exp(2.0 * max(max(0.5 * value - 0.5 * top, -1e30) * p.inverseTemperature, -60.0));
}

fn countFrom(lane: u32, at: u32, key: u32) -> u32 {
  var count = 0u;
  for (var v = lane; v < p.v; v += LANES) { count += select(0u, 1u, keyOf(z[at + v]) >= key); }
  return reduceCount(lane, count);
}

fn massFrom(lane: u32, at: u32, key: u32, top: f32) -> f32 {
  var mass = 0.0;
  for (var v = lane; v < p.v; v += LANES) {
    let value = z[at + v];
    if (keyOf(value) >= key) { mass += weightOf(value, top); }
  }
  return reduceSum(lane, mass);
}

/// The key of the smallest z to keep.
fn thresholdOf(lane: u32, at: u32, top: f32) -> u32 {
  if (p.inverseTemperature == 0.0) { return keyOf(top); }
  var threshold = 0u;
  if (p.topK > 0u) {
    for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
      let count = countFrom(lane, at, threshold | bit);
      if (count >= p.topK) { threshold |= bit; }
    }
  }
  if (p.topP < 1.0) {
    let wanted = p.topP * massFrom(lane, at, threshold, top);
    var found = 0u;
    for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
      let mass = massFrom(lane, at, found | bit, top);
      if (mass >= wanted) { found |= bit; }
    }
    threshold = max(threshold, found);
  }
  if (p.depth >= 0.0) { threshold = max(threshold, keyOf(top - p.depth)); }
  return threshold;
}

/// Computes z of a row; ids outside the vocabulary are ignored.
fn penalise(row: u32, lane: u32) {
  let at = row * p.v;
  for (var v = lane; v < p.v; v += LANES) { z[at + v] = f32(logits[at + v]); }
  storageBarrier();
  for (var r = lane; r < p.r; r += LANES) {
    let v = recent[row * p.r + r];
    if (v >= 0 && u32(v) < p.v) {
      let value = f32(logits[at + u32(v)]);
      z[at + u32(v)] = value * select(p.penalty, p.inversePenalty, value > 0.0);
    }
  }
  storageBarrier();
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  let at = row * p.v;
  penalise(row, lane);
  var top = LOWEST;
  for (var v = lane; v < p.v; v += LANES) { top = max(top, z[at + v]); }
  top = reduceMax(lane, top);
  let threshold = thresholdOf(lane, at, top);

  // Each lane sums its own range of v; lane 0 finds the range that u falls into, then the position in it.
  let stretch = (p.v + LANES - 1u) / LANES;
  var mass = 0.0;
  for (var v = lane * stretch; v < min(p.v, (lane + 1u) * stretch); v++) {
    let value = z[at + v];
    if (keyOf(value) >= threshold) { mass += weightOf(value, top); }
  }
  partial[lane] = mass;
  workgroupBarrier();
  if (lane != 0u) { return; }
  var total = 0.0;
  for (var i = 0u; i < LANES; i++) { total += partial[i]; }
  let u = select(uniformOf(p.firstWord + row), 0.0, p.inverseTemperature == 0.0);
  let place = u * total;
  var before = 0.0;
  var chosen = 0u;
  for (var i = 0u; i < LANES; i++) {
    if (partial[i] > 0.0) {
      chosen = i;
      if (before + partial[i] > place) { break; }
      before += partial[i];
    }
  }
  // If rounding leaves the sum short of u, the result is the last kept token of the range.
  var found = 0u;
  for (var v = chosen * stretch; v < min(p.v, (chosen + 1u) * stretch); v++) {
    let value = z[at + v];
    if (keyOf(value) >= threshold) {
      found = v;
      before += weightOf(value, top);
      if (before > place) { break; }
    }
  }
  id[p.first + row] = i32(found);
}
