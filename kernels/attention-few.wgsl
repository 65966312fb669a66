// attention for few queries, as decoding over a cache has them: y and lse of attention-tile.wgsl, keys in parts side by side
// part: over the keys of a part: top = largest score, sums = Σ_s exp(score - top) v[s], total likewise without v
//   in q[B,T,H,D] k v[B,S,G,D] marks[B,S]   out sums[B,T,H,parts,D] tops[B,T,H,parts] = (top, total)
//   grid: one workgroup of 64 threads per query and part of 256 keys: 8 threads share a key's score, all share D of v
// join: y = Σ_parts exp(top - max) sums / Σ_parts exp(top - max) total   in sumsIn topsIn   out y lse   grid: one workgroup per query
//   why: a tile has 32 rows, and a query's heads fill few of them; a key head's keys are one workgroup's alone there
//   numerics: f32 throughout, scores shifted by the maximum so far; a part that hides all gives (MASKED, 0) and sums of 0
//   source: Flash-Decoding (Dao et al. 2023): partial softmaxes joined by their maxima
requires immediate_address_space;

const MOST_D: u32 = 64; // room for D: a multiple of 64
const MASKED = -3.0e38; // finite, because WGSL may assume there are no infinities
const MASK: u32 = 1; // marks are bytes: 0 is padding
const SEGMENTS: u32 = 2; // marks are pairs (segment, 0 where padding)
const PART: u32 = 256; // keys: PART in attention-plan.ts

alias q_t = f32;
alias k_t = f32;
alias v_t = f32;
alias y_t = f32;

struct Params {
  t: u32, s: u32, g: u32, h: u32, d: u32, queryOffset: i32, scale: f32, marks: u32,
  firstQuery: u32, firstKey: u32, queries: u32, parts: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<q_t>;
@group(0) @binding(1) var<storage, read> k: array<k_t>;
@group(0) @binding(2) var<storage, read> v: array<v_t>;
@group(0) @binding(3) var<storage, read> marks: array<u32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;
@group(0) @binding(5) var<storage, read_write> tops: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> sumsIn: array<f32>;
@group(0) @binding(7) var<storage, read> topsIn: array<vec2<f32>>;
@group(0) @binding(8) var<storage, read_write> y: array<y_t>;
@group(0) @binding(9) var<storage, read_write> lse: array<vec2<f32>>;

var<workgroup> query: array<f32, MOST_D>;
var<workgroup> products: array<f32, 576>; // [64 keys][8 shares of D, padded to 9]
var<workgroup> weights: array<f32, 64>; // scores of 64 keys, then exp(score - top)

/// Whether the query at `position` sees key s of batch b.
fn visible(b: u32, position: i32, s: u32) -> bool {
  if (s >= p.s || i32(s) > position) { return false; }
  let first = p.firstKey + b * p.s;
  let i = first + s;
  if (p.marks == MASK) { return ((marks[i / 4] >> (i % 4 * 8)) & 0xff) != 0; }
  if (p.marks == SEGMENTS) { return marks[2 * i + 1] != 0 && marks[2 * i] == marks[2 * (first + u32(position))]; }
  return true;
}

@compute @workgroup_size(64)
fn part(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let i = wg.x + wg.y * nwg.x;
  let row = i / p.parts; // (b · T + t) · H + h
  if (row >= p.queries) { return; }
  let b = row / p.h / p.t;
  let position = i32(row / p.h % p.t) + p.queryOffset;
  let group = row % p.h / (p.h / p.g);
  for (var d = thread; d < p.d; d += 64) { query[d] = f32(q[row * p.d + d]); }
  workgroupBarrier();

  let start = i % p.parts * PART;
  let end = min(u32(clamp(position + 1, 0, i32(p.s))), start + PART);
  var top = MASKED;
  var total = 0.0;
  var out: array<f32, MOST_D / 64>; // of D: thread, thread + 64, ...
  for (var s = start; s < end; s += 64) {
    for (var j = thread / 8; j < 64; j += 8) {
      let first = ((b * p.s + min(s + j, p.s - 1)) * p.g + group) * p.d;
      var sum = 0.0;
      for (var d = thread % 8; d < p.d; d += 8) { sum += query[d] * f32(k[first + d]); }
      products[j * 9 + thread % 8] = sum;
    }
    workgroupBarrier();
    var score = 0.0;
    for (var j = thread * 9; j < thread * 9 + 8; j++) { score += products[j]; }
    score = select(MASKED, score * p.scale, visible(b, position, s + thread));
    weights[thread] = score;
    workgroupBarrier();
    let before = top;
    for (var j = 0u; j < 64; j++) { top = max(top, weights[j]); }
    workgroupBarrier();
    weights[thread] = select(0, exp(max(score - top, -100.0)), score > MASKED);
    workgroupBarrier();
    let factor = exp(max(before - top, -100.0));
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
  if (thread == 0) { tops[i] = vec2(top, total); }
}

@compute @workgroup_size(64)
fn join(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.queries) { return; }
  let first = row * p.parts;
  var top = MASKED;
  for (var i = first; i < first + p.parts; i++) { top = max(top, topsIn[i].x); }
  var total = 0.0;
  for (var i = first; i < first + p.parts; i++) { total += exp(max(topsIn[i].x - top, -100.0)) * topsIn[i].y; }
  let inverse = select(0, 1 / total, total > 0);
  for (var d = thread; d < p.d; d += 64) {
    var sum = 0.0;
    for (var i = first; i < first + p.parts; i++) {
      sum += exp(max(topsIn[i].x - top, -100.0)) * sumsIn[i * p.d + d];
    }
    y[row * p.d + d] = y_t(sum * inverse);
  }
  if (thread == 0) { lse[p.firstQuery + row] = vec2(top, select(0, log(total), total > 0)); }
}
