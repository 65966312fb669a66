// attention forward for few queries, such as one token over a KV cache: y and lse of attention-tile.wgsl, split over the keys
// split: the softmax over a range of keys: maxima = (maxScore, Σ_s exp(score - maxScore)), sums = Σ_s exp(score - maxScore) v[s]
//   in q[B,T,H,D] k v[B,S,G,D] mask[B,S]   out sums[B,T,H,splits,D] maxima[B,T,H,splits]
//   grid: one workgroup of 64 threads per query and range of 256 keys; 8 threads share the score of a key, all share D of v
// combine: y = Σ_split exp(maxScore - max) sums / Σ_split exp(maxScore - max) total, max over the splits
//   in sumsIn maximaIn   out y lse   grid: one workgroup per query
//   why: a tile of the other kernels has 32 rows or more, most of them empty here, and one workgroup would read all keys
//   numerics: f32; scores are shifted by the running maximum; a range without visible keys gives (MASKED, 0) and sums of 0
//   source: Flash-Decoding (Dao et al. 2023)
requires immediate_address_space;

const MAX_D: u32 = 64; // D at most, a multiple of 64
const MASKED = -3.0e38; // finite, because WGSL may assume there are no infinities
const KEY_MASK: u32 = 1; // mask is bytes, 0 for padding
const SEGMENTS: u32 = 2; // mask is pairs (segment, key mask)
const SPLIT_KEYS: u32 = 256; // keys of a workgroup: SPLIT_KEYS in attention-dispatch.ts

alias q_t = f32;
alias k_t = f32;
alias v_t = f32;
alias y_t = f32;

struct Params {
  t: u32, s: u32, g: u32, h: u32, d: u32, queryOffset: i32, scale: f32, maskKind: u32,
  firstQuery: u32, firstKey: u32, queries: u32, splits: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<q_t>;
@group(0) @binding(1) var<storage, read> k: array<k_t>;
@group(0) @binding(2) var<storage, read> v: array<v_t>;
@group(0) @binding(3) var<storage, read> mask: array<u32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;
@group(0) @binding(5) var<storage, read_write> maxima: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> sumsIn: array<f32>;
@group(0) @binding(7) var<storage, read> maximaIn: array<vec2<f32>>;
@group(0) @binding(8) var<storage, read_write> y: array<y_t>;
@group(0) @binding(9) var<storage, read_write> lse: array<vec2<f32>>;

var<workgroup> queryVector: array<f32, MAX_D>;
var<workgroup> partialScores: array<f32, 576>; // [64 keys][8 threads that share D, padded to 9]
var<workgroup> weights: array<f32, 64>; // scores of 64 keys, then exp(score - maxScore)

/// Whether key s of batch b is visible to the query at `position`.
fn visible(b: u32, position: i32, s: u32) -> bool {
  if (s >= p.s || i32(s) > position) { return false; }
  let first = p.firstKey + b * p.s;
  let i = first + s;
  if (p.maskKind == KEY_MASK) { return ((mask[i / 4] >> (i % 4 * 8)) & 0xff) != 0; }
  if (p.maskKind == SEGMENTS) { return mask[2 * i + 1] != 0 && mask[2 * i] == mask[2 * (first + u32(position))]; }
  return true;
}

@compute @workgroup_size(64)
fn split(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let i = wg.x + wg.y * nwg.x;
  let row = i / p.splits; // (b · T + t) · H + h
  if (row >= p.queries) { return; }
  let b = row / p.h / p.t;
  let position = i32(row / p.h % p.t) + p.queryOffset;
  let group = row % p.h / (p.h / p.g);
  for (var d = thread; d < p.d; d += 64) { queryVector[d] = f32(q[row * p.d + d]); }
  workgroupBarrier();

  let start = i % p.splits * SPLIT_KEYS;
  let end = min(u32(clamp(position + 1, 0, i32(p.s))), start + SPLIT_KEYS);
  var maxScore = MASKED;
  var total = 0.0;
  var out: array<f32, MAX_D / 64>; // of D: thread, thread + 64, ...
  for (var s = start; s < end; s += 64) {
    for (var j = thread / 8; j < 64; j += 8) {
      let first = ((b * p.s + min(s + j, p.s - 1)) * p.g + group) * p.d;
      var sum = 0.0;
      for (var d = thread % 8; d < p.d; d += 8) { sum += queryVector[d] * f32(k[first + d]); }
      partialScores[j * 9 + thread % 8] = sum;
    }
    workgroupBarrier();
    var score = 0.0;
    for (var j = thread * 9; j < thread * 9 + 8; j++) { score += partialScores[j]; }
    score = select(MASKED, score * p.scale, visible(b, position, s + thread));
    weights[thread] = score;
    workgroupBarrier();
    let before = maxScore;
    for (var j = 0u; j < 64; j++) { maxScore = max(maxScore, weights[j]); }
    workgroupBarrier();
    weights[thread] = select(0, exp(max(score - maxScore, -100.0)), score > MASKED);
    workgroupBarrier();
    let factor = exp(max(before - maxScore, -100.0));
    total *= factor;
    for (var j = 0u; j < 64; j++) { total += weights[j]; }
    for (var d = thread; d < p.d; d += 64) {
      var sum = out[d / 64] * factor;
      for (var j = 0u; j < min(64, end - s); j++) {
        sum += weights[j] * f32(v[((b * p.s + s + j) * p.g + group) * p.d + d]);
      }
      out[d / 64] = sum;
    }
  }
  for (var d = thread; d < p.d; d += 64) { sums[i * p.d + d] = out[d / 64]; }
  if (thread == 0) { maxima[i] = vec2(maxScore, total); }
}

@compute @workgroup_size(64)
fn combine(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.queries) { return; }
  let first = row * p.splits;
  var maxScore = MASKED;
  for (var i = first; i < first + p.splits; i++) { maxScore = max(maxScore, maximaIn[i].x); }
  var total = 0.0;
  for (var i = first; i < first + p.splits; i++) { total += exp(max(maximaIn[i].x - maxScore, -100.0)) * maximaIn[i].y; }
  let inverse = select(0, 1 / total, total > 0);
  for (var d = thread; d < p.d; d += 64) {
    var sum = 0.0;
    for (var i = first; i < first + p.splits; i++) {
      sum += exp(max(maximaIn[i].x - maxScore, -100.0)) * sumsIn[i * p.d + d];
    }
    y[row * p.d + d] = y_t(sum * inverse);
  }
  if (thread == 0) { lse[p.firstQuery + row] = vec2(maxScore, select(0, log(total), total > 0)); }
}
