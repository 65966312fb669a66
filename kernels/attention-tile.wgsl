// attention: y[t,h] = Σ_s softmax_s(scale · q[t,h]·k[s,g]) v[s,g] over keys s <= t + queryOffset with keyMask[s] = 1
//   and segments[s] = segments[t + queryOffset], in tiles
//   in q[B,T,H,D] k v[B,S,G,D] marks[B,S]   out y[B,T,H,D] lse[B,T,H] in two parts: the largest score, and the
//   logarithm of the sum of all relative to it
// join_marks: marksOut[s] = (segments[s], keyMask[s])   in keyMask[B,S] (bytes) segments[B,S]   out marksOut[B,S]
//   marks are those pairs, or keyMask alone, as p.marks says: one binding, since an entry point has eight
// statistics: stats[t,h] = (lseIn, dy·yIn, scale)   in dy yIn lseIn   out stats
// backward_q: dq = scale · Σ_s ds k, ds = p (dy·v - dy·y), p = exp(scale · q·k - lse)
// backward_kv: dk = scale · Σ ds q, dv = Σ p dy, over the queries that see s and the heads of its group
//   in as above, dy[B,T,H,D] statsIn[B,T,H]   out dq, dk dv
//   A row is a query of one of the H/G heads that share a key head: row r is token r / (H/G), head r % (H/G) of the group.
//   grid: one workgroup of 64 threads per 32 rows (backward_kv: 32 keys) of one key head; statistics: a
//   thread per query; join_marks: one per key
//   why: products of 32 rows and 32 keys pass through workgroup memory, no T·S matrix exists; tiles that the causal rule or
//   segments hide are skipped. Sums of a row stay with its threads, 4 rows x 4 columns in each 32 of D.
//   numerics: f32 throughout, scores shifted by their running maximum, and lse in two parts, as scores of
//   thousands would round it away; a row that sees nothing gives y = 0, lse = (MASKED, 0)
//   source: Dao et al. 2022 (FlashAttention), algorithms 1 and 4
requires immediate_address_space;

const MOST_D: u32 = 64; // room for D: a multiple of 32
const MASKED = -3.0e38; // finite, because WGSL may assume there are no infinities
const MASK: u32 = 1; // marks are bytes: 0 is padding
const SEGMENTS: u32 = 2; // marks are pairs (segment, 0 where padding)

alias q_t = f32;
alias k_t = f32;
alias v_t = f32;
alias y_t = f32;
alias dy_t = f32;
alias yIn_t = f32;
alias dq_t = f32;
alias dk_t = f32;
alias dv_t = f32;

struct Params {
  b: u32, t: u32, s: u32, g: u32, h: u32, d: u32, queryOffset: i32, scale: f32, marks: u32,
  firstQuery: u32, firstKey: u32, // where this window starts in lse and statistics, and in marks, which are bound whole
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<q_t>;
@group(0) @binding(1) var<storage, read> k: array<k_t>;
@group(0) @binding(2) var<storage, read> v: array<v_t>;
@group(0) @binding(3) var<storage, read> marks: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<y_t>;
@group(0) @binding(5) var<storage, read_write> lse: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> dy: array<dy_t>;
@group(0) @binding(7) var<storage, read> yIn: array<yIn_t>;
@group(0) @binding(8) var<storage, read> lseIn: array<vec2<f32>>;
@group(0) @binding(9) var<storage, read_write> stats: array<vec4<f32>>;
@group(0) @binding(10) var<storage, read> statsIn: array<vec4<f32>>;
@group(0) @binding(11) var<storage, read_write> dq: array<dq_t>;
@group(0) @binding(12) var<storage, read_write> dk: array<dk_t>;
@group(0) @binding(13) var<storage, read_write> dv: array<dv_t>;
@group(0) @binding(14) var<storage, read> keyMask: array<u32>;
@group(0) @binding(15) var<storage, read> segments: array<u32>;
@group(0) @binding(16) var<storage, read_write> marksOut: array<vec2<u32>>;

alias Sums = array<vec4<f32>, MOST_D / 8>; // [32 of D][row]
const RIGHT: u32 = 160;
const GRADIENTS: u32 = 1056;

// Two blocks of [32][16 of D in vectors, padded to 5]: the left and the right side of a product; or one of [32][32 of D].
var<workgroup> blocks: array<vec4<f32>, 320>;
// Two tiles of [32 rows][32 columns, padded to 33]: scores or weights, and their gradients.
var<workgroup> tiles: array<f32, 2112>;
var<workgroup> rowMax: array<f32, 32>;
var<workgroup> rowSum: array<f32, 32>;
var<workgroup> rescale: array<f32, 32>; // what a row's sums so far are multiplied by
var<workgroup> sees: array<u32, 64>;
var<workgroup> met: u32;

/// Where a workgroup works: batch, key head, and its first row or key.
struct Place { b: u32, g: u32, first: u32 }

fn heads() -> u32 { return p.h / p.g; }
fn rows() -> u32 { return p.t * heads(); }

fn placeOf(wg: vec3<u32>, nwg: vec3<u32>, count: u32) -> Place {
  let i = wg.x + wg.y * nwg.x;
  let tiles = (count + 31) / 32;
  return Place(i / tiles / p.g, i / tiles % p.g, i % tiles * 32);
}

/// Index of a row among all queries, and of a key among all keys; past the end, the last one.
fn query(at: Place, row: u32) -> u32 {
  let r = min(row, rows() - 1);
  return (at.b * p.t + r / heads()) * p.h + at.g * heads() + r % heads();
}
fn key(at: Place, s: u32) -> u32 { return (at.b * p.s + min(s, p.s - 1)) * p.g + at.g; }

// Four values of a row or key: zero past the end of D; past the last row or key the last one's, which nothing counts.
fn four(d: u32, v: vec4<f32>) -> vec4<f32> { return select(vec4<f32>(), v, vec4(d, d + 1, d + 2, d + 3) < vec4(p.d)); }
fn fourAt(i: u32, d: u32) -> vec4<u32> { return i * p.d + min(vec4(d, d + 1, d + 2, d + 3), vec4(p.d - 1)); }
fn readQ(at: Place, row: u32, d: u32) -> vec4<f32> {
  let i = fourAt(query(at, row), d);
  return four(d, vec4(f32(q[i.x]), f32(q[i.y]), f32(q[i.z]), f32(q[i.w])));
}
fn readDy(at: Place, row: u32, d: u32) -> vec4<f32> {
  let i = fourAt(query(at, row), d);
  return four(d, vec4(f32(dy[i.x]), f32(dy[i.y]), f32(dy[i.z]), f32(dy[i.w])));
}
fn readK(at: Place, s: u32, d: u32) -> vec4<f32> {
  let i = fourAt(key(at, s), d);
  return four(d, vec4(f32(k[i.x]), f32(k[i.y]), f32(k[i.z]), f32(k[i.w])));
}
fn readV(at: Place, s: u32, d: u32) -> vec4<f32> {
  let i = fourAt(key(at, s), d);
  return four(d, vec4(f32(v[i.x]), f32(v[i.y]), f32(v[i.z]), f32(v[i.w])));
}

fn visible(at: Place, row: u32, s: u32) -> bool {
  let position = i32(row / heads()) + p.queryOffset;
  if (row >= rows() || s >= p.s || i32(s) > position) { return false; }
  let first = p.firstKey + at.b * p.s;
  let i = first + s;
  if (p.marks == MASK) { return ((marks[i / 4] >> (i % 4 * 8)) & 0xff) != 0; }
  if (p.marks == SEGMENTS) { return marks[2 * i + 1] != 0 && marks[2 * i] == marks[2 * (first + u32(position))]; }
  return true;
}

/// Whether some of 32 rows sees some of 32 keys: asked where segments may hide all of them.
fn meet(at: Place, row: u32, s: u32, thread: u32) -> bool {
  if (p.marks != SEGMENTS) { return true; }
  var seen = false;
  for (var i = 0u; i < 16; i++) { seen |= visible(at, row + thread % 32, s + thread / 32 * 16 + i); }
  sees[thread] = u32(seen);
  workgroupBarrier();
  if (thread == 0) {
    met = 0;
    for (var i = 0u; i < 64; i++) { met |= sees[i]; }
  }
  return workgroupUniformLoad(&met) != 0;
}

/// One past the last key that some of the 32 rows sees.
fn keysEnd(at: Place) -> u32 {
  let last = min(at.first + 31, rows() - 1) / heads();
  return u32(clamp(i32(last) + p.queryOffset + 1, 0, i32(p.s)));
}

/// First row that sees the key tile.
fn rowsStart(at: Place) -> u32 { return u32(max(i32(at.first) - p.queryOffset, 0)) * heads(); }

/// left · rightᵀ over 16 of D: the thread's four rows times its four columns, which are 8 apart.
fn addProduct(sums: mat4x4<f32>, d: u32, thread: u32) -> mat4x4<f32> {
  var sum = sums;
  for (var i = 0u; i < (min(16, p.d - d) + 3) / 4; i++) {
    let l = thread / 8 * 20 + i;
    let r = RIGHT + thread % 8 * 5 + i;
    let b = transpose(mat4x4(blocks[r], blocks[r + 40], blocks[r + 80], blocks[r + 120]));
    sum = mat4x4(sum[0] + b * blocks[l], sum[1] + b * blocks[l + 5], sum[2] + b * blocks[l + 10], sum[3] + b * blocks[l + 15]);
  }
  return sum;
}

/// scale · q·k for 32 rows and keys into the first tile, keys as its rows if `keysLeft`.
fn scoreTile(at: Place, row: u32, s: u32, keysLeft: bool, thread: u32) {
  var sum: mat4x4<f32>;
  let qAt = select(0, RIGHT, keysLeft);
  for (var d = 0u; d < p.d; d += 16) {
    for (var i = thread; i < 128; i += 64) {
      blocks[qAt + i / 4 * 5 + i % 4] = readQ(at, row + i / 4, d + i % 4 * 4);
      blocks[RIGHT - qAt + i / 4 * 5 + i % 4] = readK(at, s + i / 4, d + i % 4 * 4);
    }
    workgroupBarrier();
    sum = addProduct(sum, d, thread);
    workgroupBarrier();
  }
  storeTile(sum * p.scale, 0, thread);
}

/// dy·v likewise into the second tile.
fn gradientTile(at: Place, row: u32, s: u32, keysLeft: bool, thread: u32) {
  var sum: mat4x4<f32>;
  let dyAt = select(0, RIGHT, keysLeft);
  for (var d = 0u; d < p.d; d += 16) {
    for (var i = thread; i < 128; i += 64) {
      blocks[dyAt + i / 4 * 5 + i % 4] = readDy(at, row + i / 4, d + i % 4 * 4);
      blocks[RIGHT - dyAt + i / 4 * 5 + i % 4] = readV(at, s + i / 4, d + i % 4 * 4);
    }
    workgroupBarrier();
    sum = addProduct(sum, d, thread);
    workgroupBarrier();
  }
  storeTile(sum, GRADIENTS, thread);
}

fn storeTile(sums: mat4x4<f32>, tile: u32, thread: u32) {
  var w = sums; // a copy, so that only it is indexed at run time
  for (var i = 0u; i < min(16, 16 * p.d); i++) { // an end that no driver unrolls to
    tiles[tile + (thread / 8 * 4 + i / 4) * 33 + thread % 8 + i % 4 * 8] = w[i / 4][i % 4];
  }
}

/// Scores of a row become weights exp(score - maximum); its maximum and sum go on from the tiles before.
fn softmaxRow(at: Place, r: u32, s: u32) {
  let w = r * 33;
  let count = min(32, p.s - s);
  let before = rowMax[r];
  var top = before;
  for (var i = 0u; i < count; i++) {
    if (visible(at, at.first + r, s + i)) { top = max(top, tiles[w + i]); } else { tiles[w + i] = MASKED; }
  }
  let factor = exp(max(before - top, -100.0));
  var sum = rowSum[r] * factor;
  for (var i = 0u; i < count; i++) {
    let e = select(0, exp(max(tiles[w + i] - top, -100.0)), tiles[w + i] > MASKED);
    tiles[w + i] = e;
    sum += e;
  }
  rowMax[r] = top;
  rowSum[r] = sum;
  rescale[r] = factor;
}

/// The first tile becomes p, the second ds · scale.
fn gradientWeights(at: Place, row: u32, s: u32, keysLeft: bool, thread: u32) {
  for (var i = thread; i < 1024; i += 64) {
    let r = row + select(i / 32, i % 32, keysLeft);
    let c = s + select(i % 32, i / 32, keysLeft);
    let w = i / 32 * 33 + i % 32;
    let stat = statsIn[p.firstQuery + query(at, r)];
    let weight = select(0, exp(max(tiles[w] - stat.x, -100.0) - stat.y), visible(at, r, c));
    tiles[w] = weight;
    tiles[GRADIENTS + w] = weight * (tiles[GRADIENTS + w] - stat.z) * stat.w;
  }
}

/// factor · sums + tile · values for 32 of D of the thread's sums, over `count` columns of the tile.
fn addValues(sums: ptr<function, Sums>, chunk: u32, factor: vec4<f32>, tile: u32, count: u32, thread: u32) {
  let c = chunk * 4;
  var sum = mat4x4((*sums)[c] * factor.x, (*sums)[c + 1] * factor.y, (*sums)[c + 2] * factor.z, (*sums)[c + 3] * factor.w);
  let w = tile + thread / 8 * 132;
  for (var i = 0u; i < min(32, count); i++) {
    let value = blocks[i * 8 + thread % 8];
    let weight = vec4(tiles[w + i], tiles[w + 33 + i], tiles[w + 66 + i], tiles[w + 99 + i]);
    sum = mat4x4(sum[0] + weight.x * value, sum[1] + weight.y * value, sum[2] + weight.z * value, sum[3] + weight.w * value);
  }
  (*sums)[c] = sum[0];
  (*sums)[c + 1] = sum[1];
  (*sums)[c + 2] = sum[2];
  (*sums)[c + 3] = sum[3];
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
           @builtin(local_invocation_index) thread: u32) {
  let at = placeOf(wg, nwg, rows());
  if (at.b >= p.b) { return; }
  if (thread < 32) {
    rowMax[thread] = MASKED;
    rowSum[thread] = 0;
  }
  let r0 = thread / 8 * 4;
  let col = thread % 8 * 4;
  var sums: Sums;
  let end = keysEnd(at);
  for (var s = 0u; s < end; s += 32) {
    if (!meet(at, at.first, s, thread)) { continue; }
    scoreTile(at, at.first, s, false, thread);
    workgroupBarrier();
    if (thread < 32) { softmaxRow(at, thread, s); }
    workgroupBarrier();
    let factor = vec4(rescale[r0], rescale[r0 + 1], rescale[r0 + 2], rescale[r0 + 3]);
    for (var c = 0u; c * 32 < p.d; c++) {
      for (var i = thread; i < 256; i += 64) { blocks[i] = readV(at, s + i / 8, c * 32 + i % 8 * 4); }
      workgroupBarrier();
      addValues(&sums, c, factor, 0, p.s - s, thread);
      workgroupBarrier();
    }
  }
  workgroupBarrier(); // a workgroup without keys has not passed one
  var out = sums; // a copy, so that only it is indexed at run time
  for (var r = r0; r < min(r0 + 4, rows() - at.first); r++) {
    let sum = rowSum[r];
    let i = query(at, at.first + r) * p.d;
    for (var d = 0u; d < p.d; d += 32) { // dimensions d + col .. d + col + 3
      let value = out[d / 8 + r - r0] * select(0, 1 / sum, sum > 0);
      for (var e = d + col; e < min(d + col + 4, p.d); e++) { y[i + e] = y_t(value[e - d - col]); }
    }
  }
  if (thread < 32 && at.first + thread < rows()) {
    let sum = rowSum[thread];
    lse[p.firstQuery + query(at, at.first + thread)] = vec2(rowMax[thread], select(0, log(sum), sum > 0));
  }
}

@compute @workgroup_size(64)
fn join_marks(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
  let i = (wg.x + wg.y * nwg.x) * 64 + thread;
  if (i >= p.b * p.s) { return; }
  var open = 1u;
  if (p.marks == MASK) { open = (keyMask[i / 4] >> (i % 4 * 8)) & 0xff; }
  marksOut[i] = vec2(segments[i], open);
}

@compute @workgroup_size(64)
fn statistics(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
  let i = (wg.x + wg.y * nwg.x) * 64 + thread;
  if (i >= p.b * p.t * p.h) { return; }
  var sum = 0.0;
  for (var d = i * p.d; d < (i + 1) * p.d; d++) { sum += f32(dy[d]) * f32(yIn[d]); }
  let lse = lseIn[p.firstQuery + i];
  // Of a key that has all weight, dy·v - dy·y is 0, and what is left of it rounding: it counts nothing.
  stats[p.firstQuery + i] = vec4(lse, sum, select(p.scale, 0, lse.y == 0));
}

@compute @workgroup_size(64)
fn backward_q(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
  let at = placeOf(wg, nwg, rows());
  if (at.b >= p.b) { return; }
  let r0 = thread / 8 * 4;
  let col = thread % 8 * 4;
  var sums: Sums;
  let end = keysEnd(at);
  for (var s = 0u; s < end; s += 32) {
    if (!meet(at, at.first, s, thread)) { continue; }
    scoreTile(at, at.first, s, false, thread);
    gradientTile(at, at.first, s, false, thread);
    workgroupBarrier();
    gradientWeights(at, at.first, s, false, thread);
    for (var c = 0u; c * 32 < p.d; c++) {
      for (var i = thread; i < 256; i += 64) { blocks[i] = readK(at, s + i / 8, c * 32 + i % 8 * 4); }
      workgroupBarrier();
      addValues(&sums, c, vec4(1.0), GRADIENTS, p.s - s, thread);
      workgroupBarrier();
    }
  }
  var out = sums;
  for (var r = r0; r < min(r0 + 4, rows() - at.first); r++) {
    let i = query(at, at.first + r) * p.d;
    for (var d = 0u; d < p.d; d += 32) {
      let value = out[d / 8 + r - r0];
      for (var e = d + col; e < min(d + col + 4, p.d); e++) { dq[i + e] = dq_t(value[e - d - col]); }
    }
  }
}

@compute @workgroup_size(64)
fn backward_kv(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
               @builtin(local_invocation_index) thread: u32) {
  let at = placeOf(wg, nwg, p.s);
  if (at.b >= p.b) { return; }
  let r0 = thread / 8 * 4;
  let col = thread % 8 * 4;
  var sumsK: Sums;
  var sumsV: Sums;
  for (var row = rowsStart(at); row < rows(); row += 32) {
    if (!meet(at, row, at.first, thread)) { continue; }
    scoreTile(at, row, at.first, true, thread);
    gradientTile(at, row, at.first, true, thread);
    workgroupBarrier();
    gradientWeights(at, row, at.first, true, thread);
    for (var c = 0u; c * 32 < p.d; c++) {
      for (var i = thread; i < 256; i += 64) { blocks[i] = readDy(at, row + i / 8, c * 32 + i % 8 * 4); }
      workgroupBarrier();
      addValues(&sumsV, c, vec4(1.0), 0, rows() - row, thread);
      workgroupBarrier();
      for (var i = thread; i < 256; i += 64) { blocks[i] = readQ(at, row + i / 8, c * 32 + i % 8 * 4); }
      workgroupBarrier();
      addValues(&sumsK, c, vec4(1.0), GRADIENTS, rows() - row, thread);
      workgroupBarrier();
    }
  }
  var outK = sumsK;
  var outV = sumsV;
  for (var r = r0; r < min(r0 + 4, p.s - at.first); r++) {
    let i = key(at, at.first + r) * p.d;
    for (var d = 0u; d < p.d; d += 32) {
      let valueK = outK[d / 8 + r - r0];
      let valueV = outV[d / 8 + r - r0];
      for (var e = d + col; e < min(d + col + 4, p.d); e++) {
        dk[i + e] = dk_t(valueK[e - d - col]);
        dv[i + e] = dv_t(valueV[e - d - col]);
      }
    }
  }
}
