// attention: y[t,h] = Σ_s softmax_s(scale · q[t,h]·k[s,g]) v[s,g] over keys s <= t + queryOffset with keyMask[s] = 1
//   and segments[s] = segments[t + queryOffset]
// forward:     in q[B,T,H,D] k v[B,S,G,D] mask[B,S]   out y[B,T,H,D] lse[B,T,H] = (maximum score, log Σ exp(score - maximum))
// backward_q:  dq = scale · Σ_s ds k with ds = p (dy·v - dy·y) and p = exp(scale · q·k - lse)
// backward_kv: dk = scale · Σ ds q, dv = Σ p dy, over the queries to which s is visible and the heads of its group
//   in as forward, dy[B,T,H,D] statsIn[B,T,H]   out dq, or dk and dv
// statistics:  stats[t,h] = (lseIn, dy·yIn, scale)   in dy yIn lseIn   out stats
// pack_mask:   maskOut[s] = (segments[s], keyMask[s])   in keyMask[B,S] (bytes) segments[B,S]   out maskOut[B,S]
//   mask holds keyMask or these pairs, as maskKind says: one binding for both, since an adapter may have only eight
//   A row is a query of one of the H/G heads that share a key head: row r is token r / (H/G), head r % (H/G) of the group.
//   grid: one workgroup of 64 threads per tile of 32 rows (backward_kv: 32 keys) of one key head; statistics: one thread per
//   query; pack_mask: one thread per key
//   why: scores of 32 rows x 32 keys pass through workgroup memory, so there is no T x S matrix, and tiles that the causal
//   rule or the segments hide are skipped. A thread accumulates 4 rows x 4 columns of each 32 of D.
//   numerics: f32; scores are shifted by the running maximum; lse is two numbers, since scores of thousands would round the
//   logarithm away; a row without visible keys gives y = 0 and lse = (MASKED, 0)
//   source: Dao et al. 2022 (FlashAttention), algorithms 1 and 4
requires immediate_address_space;

const MAX_D: u32 = 64; // D at most, a multiple of 32
const MASKED = -3.0e38; // finite, because WGSL may assume there are no infinities
const KEY_MASK: u32 = 1; // mask is bytes, 0 for padding
const SEGMENTS: u32 = 2; // mask is pairs (segment, key mask)

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
  b: u32, t: u32, s: u32, g: u32, h: u32, d: u32, queryOffset: i32, scale: f32, maskKind: u32,
  firstQuery: u32, firstKey: u32, // where the window starts in lse and stats, and in mask: they are bound whole
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<q_t>;
@group(0) @binding(1) var<storage, read> k: array<k_t>;
@group(0) @binding(2) var<storage, read> v: array<v_t>;
@group(0) @binding(3) var<storage, read> mask: array<u32>;
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
@group(0) @binding(16) var<storage, read_write> maskOut: array<vec2<u32>>;

alias Sums = array<vec4<f32>, MAX_D / 8>; // [32 of D][row]
const RIGHT: u32 = 160;
const GRADIENTS: u32 = 1056;

// Two blocks [32][16 of D as 4 vectors, padded to 5], the left and right side of q·k or dy·v; or one block [32][32 of D].
var<workgroup> blocks: array<vec4<f32>, 320>;
// Two tiles [32 rows][32 columns, padded to 33]: scores or weights, and from GRADIENTS on their gradients.
var<workgroup> tiles: array<f32, 2112>;
var<workgroup> rowMax: array<f32, 32>;
var<workgroup> rowSum: array<f32, 32>;
var<workgroup> rescale: array<f32, 32>; // factor of a row's sums so far
var<workgroup> visibility: array<u32, 64>;
var<workgroup> anyVisibleInTile: u32;

/// The tile of a workgroup: batch, key head, and first row or key.
struct Place { b: u32, g: u32, first: u32 }

fn heads() -> u32 { return p.h / p.g; }
fn rows() -> u32 { return p.t * heads(); }

fn placeOf(wg: vec3<u32>, nwg: vec3<u32>, count: u32) -> Place {
  let i = wg.x + wg.y * nwg.x;
  let tiles = (count + 31) / 32;
  return Place(i / tiles / p.g, i / tiles % p.g, i % tiles * 32);
}

/// Index of a row among all queries; past the end, that of the last row.
fn query(at: Place, row: u32) -> u32 {
  let r = min(row, rows() - 1);
  return (at.b * p.t + r / heads()) * p.h + at.g * heads() + r % heads();
}
/// Index of a key among all keys; past the end, that of the last key.
fn key(at: Place, s: u32) -> u32 { return (at.b * p.s + min(s, p.s - 1)) * p.g + at.g; }

// Four values of a row or key from element d on, zero past the end of D. Past the last row or key it is the last one's, unused.
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
  if (p.maskKind == KEY_MASK) { return ((mask[i / 4] >> (i % 4 * 8)) & 0xff) != 0; }
  if (p.maskKind == SEGMENTS) { return mask[2 * i + 1] != 0 && mask[2 * i] == mask[2 * (first + u32(position))]; }
  return true;
}

/// Whether any of 32 keys is visible to any of 32 rows. Segments alone can hide a whole tile of the loops below.
fn anyVisible(at: Place, row: u32, s: u32, thread: u32) -> bool {
  if (p.maskKind != SEGMENTS) { return true; }
  var isAny = false;
  for (var i = 0u; i < 16; i++) { isAny |= visible(at, row + thread % 32, s + thread / 32 * 16 + i); }
  visibility[thread] = u32(isAny);
  workgroupBarrier();
  if (thread == 0) {
    anyVisibleInTile = 0;
    for (var i = 0u; i < 64; i++) { anyVisibleInTile |= visibility[i]; }
  }
  return workgroupUniformLoad(&anyVisibleInTile) != 0;
}

/// One past the last key that the causal rule makes visible to any of the 32 rows.
fn keysEnd(at: Place) -> u32 {
  let last = min(at.first + 31, rows() - 1) / heads();
  return u32(clamp(i32(last) + p.queryOffset + 1, 0, i32(p.s)));
}

/// First row to which the causal rule makes any key of the tile visible.
fn rowsStart(at: Place) -> u32 { return u32(max(i32(at.first) - p.queryOffset, 0)) * heads(); }

/// Adds left · rightᵀ over 16 of D: the thread's four rows times its four columns, which are 8 apart.
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

/// Writes scale · q·k of 32 rows and 32 keys to the first tile; with `keysLeft`, keys are the tile's rows.
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

/// Writes dy·v likewise to the second tile.
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
  var w = sums; // indexing with a variable is confined to this copy
  for (var i = 0u; i < min(16, 16 * p.d); i++) { // the bound depends on a parameter, so that no driver unrolls the loop
    tiles[tile + (thread / 8 * 4 + i / 4) * 33 + thread % 8 + i % 4 * 8] = w[i / 4][i % 4];
  }
}

/// Turns the scores of a row into weights exp(score - maximum) and updates the row's running maximum and sum.
fn softmaxRow(at: Place, r: u32, s: u32) {
  let w = r * 33;
  let count = min(32, p.s - s);
  let before = rowMax[r];
  var maxScore = before;
  for (var i = 0u; i < count; i++) {
    if (visible(at, at.first + r, s + i)) { maxScore = max(maxScore, tiles[w + i]); } else { tiles[w + i] = MASKED; }
  }
  let factor = exp(max(before - maxScore, -100.0));
  var sum = rowSum[r] * factor;
  for (var i = 0u; i < count; i++) {
    let e = select(0, exp(max(tiles[w + i] - maxScore, -100.0)), tiles[w + i] > MASKED);
    tiles[w + i] = e;
    sum += e;
  }
  rowMax[r] = maxScore;
  rowSum[r] = sum;
  rescale[r] = factor;
}

/// Turns the first tile into p and the second into ds · scale.
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

/// sums = factor · sums + tile · values for chunk `chunk` of 32 of D, over the first `count` columns of the tile.
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
    if (!anyVisible(at, at.first, s, thread)) { continue; }
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
  workgroupBarrier(); // a workgroup without keys has passed none yet
  var out = sums; // indexing with a variable is confined to this copy
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
fn pack_mask(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
  let i = (wg.x + wg.y * nwg.x) * 64 + thread;
  if (i >= p.b * p.s) { return; }
  var open = 1u;
  if (p.maskKind == KEY_MASK) { open = (keyMask[i / 4] >> (i % 4 * 8)) & 0xff; }
  maskOut[i] = vec2(segments[i], open);
}

@compute @workgroup_size(64)
fn statistics(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
  let i = (wg.x + wg.y * nwg.x) * 64 + thread;
  if (i >= p.b * p.t * p.h) { return; }
  var sum = 0.0;
  for (var d = i * p.d; d < (i + 1) * p.d; d++) { sum += f32(dy[d]) * f32(yIn[d]); }
  let lse = lseIn[p.firstQuery + i];
  // log-sum 0: one key has all the weight, so dy·v - dy·y is 0 up to rounding. The scale 0 makes the gradient exactly 0.
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
    if (!anyVisible(at, at.first, s, thread)) { continue; }
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
    if (!anyVisible(at, row, at.first, thread)) { continue; }
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
