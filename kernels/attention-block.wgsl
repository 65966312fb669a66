// attention for GPUs, where D is a multiple of 4 up to 256: mathematics and operands of attention-tile.wgsl, tiled in registers
//   in as there   out out: y (with lse), dq, or dv (with dk); with splits > 1, dk and dv are partial sums [splits,B,S,G,D]
//   grid: one workgroup per 64 rows of one key head (backward_kv: per 64 keys and split of the rows), longest ones first
//   why: a tile is 64 x 64. Its left side has the sums: rows (queries), or keys in backward_kv. A thread computes eight left
//   items (four if there are 256 threads) by four right ones of a tile of scores, and for the same left items D / 16 columns
//   of the sums, all in variables that constants index. Both operands of the scores pass through `slices` as [d][64], 16 of D
//   at a time, and the next 16 are loaded while these are multiplied. Weights pass through `tile` as [32 right][64 left]. So
//   32 multiply-adds of scores take 3 vectors from workgroup memory, and 64 of sums (D = 128) take 4. Groups of four within a
//   line are permuted (^), which avoids bank conflicts without padding: both arrays are 8 KiB, and every adapter has 16.
//   numerics: f32, as there; a thread sums the weights of its own columns, and the threads of a row combine at the end
//   source: Dao 2023 (FlashAttention-2), algorithms 1 and 2
requires immediate_address_space;
const MAX_D: u32 = 64; // D at most: 64, 128 or 256
const THREADS: u32 = 128; // or 256, each with half the left items, where D > 128
const KEYS_LEFT: u32 = 0; // 1 in backward_kv
const MASKED = -3.0e38; // finite, because WGSL may assume there are no infinities
const KEY_MASK: u32 = 1; // mask is bytes, 0 for padding
const SEGMENTS: u32 = 2; // mask is pairs (segment, key mask)
const VECTORS: u32 = MAX_D / 4; // vectors of an item (a row or key)
const SLICE: u32 = 512 / VECTORS; // right items of a slice of values

alias q_v = vec4<f32>;
alias k_v = vec4<f32>;
alias v_v = vec4<f32>;
alias dy_v = vec4<f32>;
alias out_v = vec4<f32>;
alias dk_v = vec4<f32>;
struct Params {
  b: u32, t: u32, s: u32, g: u32, h: u32, d: u32, queryOffset: i32, scale: f32, maskKind: u32,
  firstQuery: u32, firstKey: u32, // where the window starts in lse and stats, and in mask: they are bound whole
  splits: u32, // workgroups that share the rows of a key tile
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<q_v>;
@group(0) @binding(1) var<storage, read> k: array<k_v>;
@group(0) @binding(2) var<storage, read> v: array<v_v>;
@group(0) @binding(3) var<storage, read> mask: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<out_v>;
@group(0) @binding(5) var<storage, read_write> lse: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> dy: array<dy_v>;
@group(0) @binding(7) var<storage, read> statsIn: array<vec4<f32>>; // (lse, dy·y, scale) of a query
@group(0) @binding(8) var<storage, read_write> dk: array<dk_v>;

var<workgroup> slices: array<vec4<f32>, 512>; // [left, right][16 of D][16 groups], or [SLICE][VECTORS]
var<workgroup> tile: array<vec4<f32>, 512>; // [32 right][16 groups of left]

/// The tile of a workgroup: batch, key head, first row or key, and split of the other side.
struct Place { b: u32, g: u32, first: u32, split: u32 }
/// A thread computes left items 4 · left .. + 4 (and 32 + 4 · left .. + 4) by right items 4 · right .. + 4, or vectors of D likewise.
struct Thread { i: u32, left: u32, right: u32 }
/// Columns are right items, components left items: a has the first four, b those 32 further.
struct Scores { a: mat4x4<f32>, b: mat4x4<f32> }
/// Columns are left items, likewise; components are elements of D, 64 further in each matrix of a or b.
struct Sums { a0: mat4x4<f32>, a1: mat4x4<f32>, a2: mat4x4<f32>, a3: mat4x4<f32>, b0: mat4x4<f32>, b1: mat4x4<f32> }
struct PerLeft { a: vec4<f32>, b: vec4<f32> } // a number for each left item of a thread
/// Positions and segments of four rows or keys.
struct Visibility { position: vec4<i32>, segment: vec4<u32> }
// A subgroup of 32 has 4 x 8 groups: each of its loads from workgroup memory takes at most 8 vectors.
fn threadOf(i: u32) -> Thread { return Thread(i, i / 8 % 4 + i / 64 % 4 * 4, i % 8 + i / 32 % 2 * 8); }
fn heads() -> u32 { return p.h / p.g; }
fn rows() -> u32 { return p.t * heads(); }
/// Workgroups go tile by tile, and through all heads of a tile; b is p.b past the end.
fn placeOf(wg: vec3<u32>, nwg: vec3<u32>, count: u32, splits: u32) -> Place {
  let i = wg.x + wg.y * nwg.x;
  let head = i / splits % (p.b * p.g);
  let index = i / splits / (p.b * p.g);
  let tiles = (count + 63) / 64;
  if (index >= tiles) { return Place(p.b, 0, 0, 0); }
  return Place(head / p.g, head % p.g, 64 * select(tiles - 1 - index, index, KEYS_LEFT != 0), i % splits);
}
/// Token of row `first + j`; there are few heads, so this quotient is exact in f32.
fn token(first: u32, j: u32) -> u32 {
  return first / heads() + u32((f32(first % heads() + j) + 0.5) * (1 / f32(heads())));
}
/// Index of row `first + j` among all queries, and (key) of a key among all keys; past the end, that of the last one.
fn query(at: Place, first: u32, j: u32) -> u32 {
  let row = min(j, rows() - 1 - first);
  let t = token(first, row);
  return (at.b * p.t + t) * p.h + at.g * heads() + first + row - t * heads();
}
fn key(at: Place, s: u32) -> u32 { return (at.b * p.s + min(s, p.s - 1)) * p.g + at.g; }
/// Indices of the four items j, j + step, .. of the rows (or, `ofKeys`, the keys) of the tile whose right side starts at `m`.
fn items(at: Place, m: u32, j: u32, step: u32, ofKeys: bool) -> vec4<u32> {
  let start = select(at.first, m, ofKeys == (KEYS_LEFT == 0));
  let n = vec4(j, j + step, j + 2 * step, j + 3 * step);
  if (ofKeys) { return vec4(key(at, start + n.x), key(at, start + n.y), key(at, start + n.z), key(at, start + n.w)); }
  return vec4(query(at, start, n.x), query(at, start, n.y), query(at, start, n.z), query(at, start, n.w));
}

/// Segments of four positions, clamped to 0 .. S - 1: positions outside belong to rows or keys that do not exist.
fn segments(at: Place, position: vec4<i32>) -> vec4<u32> {
  if (p.maskKind != SEGMENTS) { return vec4<u32>(); }
  let i = 2 * (p.firstKey + at.b * p.s + vec4<u32>(clamp(position, vec4(0), vec4(i32(p.s) - 1))));
  return vec4(mask[i.x], mask[i.y], mask[i.z], mask[i.w]);
}
/// Position of a key, or one beyond all rows if the key is masked or past the end.
fn keyPosition(at: Place, s: u32) -> i32 {
  let i = p.firstKey + at.b * p.s + min(s, p.s - 1);
  var isUnmasked = s < p.s;
  if (p.maskKind == KEY_MASK) { isUnmasked = isUnmasked && ((mask[i / 4] >> (i % 4 * 8)) & 0xff) != 0; }
  if (p.maskKind == SEGMENTS) { isUnmasked = isUnmasked && mask[2 * i + 1] != 0; }
  return select(0x7fffffff, i32(s), isUnmasked);
}
/// Of items first + j .. + 4; rows past the end have position -1, so that no key is visible to them.
fn visibilityOf(at: Place, first: u32, j: u32, ofKeys: bool) -> Visibility {
  let n = vec4(first + j) + vec4(0, 1, 2, 3);
  if (ofKeys) { return Visibility(vec4(keyPosition(at, n.x), keyPosition(at, n.y), keyPosition(at, n.z), keyPosition(at, n.w)), segments(at, vec4<i32>(n))); }
  let position = p.queryOffset + vec4<i32>(vec4(token(first, j), token(first, j + 1), token(first, j + 2), token(first, j + 3)));
  return Visibility(select(vec4(-1), min(position, vec4(i32(p.s) - 1)), n < vec4(rows())), segments(at, position));
}
/// For each of four left items and a right one, whether the key is visible to the row.
fn isVisible(left: Visibility, at: i32, segment: u32) -> vec4<bool> {
  if (KEYS_LEFT != 0) { return (left.position <= vec4(at)) & (left.segment == vec4(segment)); }
  return (left.position >= vec4(at)) & (left.segment == vec4(segment));
}
fn pairBits(l: Visibility, r: Visibility) -> u32 {
  let bit = vec4(1u, 2, 4, 8);
  let none = vec4<u32>();
  let all = select(none, bit, isVisible(l, r.position.x, r.segment.x)) | select(none, bit << vec4(8u), isVisible(l, r.position.y, r.segment.y)) |
    select(none, bit << vec4(16u), isVisible(l, r.position.z, r.segment.z)) | select(none, bit << vec4(24u), isVisible(l, r.position.w, r.segment.w));
  return all.x | all.y | all.z | all.w;
}
/// Which of a thread's pairs are visible, eight bits per right item. Computed only with a mask, at the diagonal or at an end.
fn visiblePairs(at: Place, m: u32, t: Thread) -> u32 {
  let row = select(at.first, m, KEYS_LEFT != 0);
  let s = select(m, at.first, KEYS_LEFT != 0);
  if (p.maskKind == 0 && i32(s + 63) <= i32(row / heads()) + p.queryOffset && s + 64 <= p.s && row + 64 <= rows()) { return 0xffffffff; }
  let right = visibilityOf(at, m, t.right * 4, KEYS_LEFT == 0);
  let first = pairBits(visibilityOf(at, at.first, t.left * 4, KEYS_LEFT != 0), right);
  if (THREADS == 256) { return first; }
  return first | (pairBits(visibilityOf(at, at.first, 32 + t.left * 4, KEYS_LEFT != 0), right) << 4);
}
/// Scores times scale, MASKED where not visible; the lowest four bits of each byte of `visible` are these left items.
fn maskedScores(w: mat4x4<f32>, visible: u32) -> mat4x4<f32> {
  let bit = vec4(1u, 2, 4, 8);
  let none = vec4(MASKED);
  let off = vec4<u32>();
  return mat4x4(select(none, w[0] * p.scale, (vec4(visible) & bit) != off), select(none, w[1] * p.scale, (vec4(visible >> 8) & bit) != off),
                select(none, w[2] * p.scale, (vec4(visible >> 16) & bit) != off), select(none, w[3] * p.scale, (vec4(visible >> 24) & bit) != off));
}
/// Whether any pair of the tile is visible. Only segments can hide a whole tile of the loops below. Uses `tile`.
fn anyVisible(visible: u32, t: Thread) -> bool {
  if (p.maskKind != SEGMENTS) { return true; }
  workgroupBarrier();
  tile[t.i] = vec4(f32(visible != 0));
  workgroupBarrier();
  var sum = vec4<f32>();
  for (var i = t.i; i < select(0, THREADS, t.i < 16); i += 16) { sum += tile[i]; }
  if (t.i < 16) { tile[256 + t.i] = sum; }
  workgroupBarrier();
  for (var i = 1u; i < select(0u, 16, t.i == 0); i++) { sum += tile[256 + i]; }
  if (t.i == 0) { tile[272] = sum; }
  return workgroupUniformLoad(&tile[272]).x > 0;
}
// For scores or dy·v, 128 threads fetch four items each by four of D: the first 64 threads left items, the others right ones.
fn fetchesKeys(t: Thread) -> bool { return t.i / 64 != KEYS_LEFT; }
fn scoreStarts(at: Place, m: u32, t: Thread) -> vec4<u32> { return p.d / 4 * items(at, m, t.i % 64 / 4 * 4, 1, fetchesKeys(t)) + t.i % 4; }
fn fetchScores(t: Thread, start: vec4<u32>, d: u32) -> mat4x4<f32> {
  if (t.i >= 128 || d / 4 + t.i % 4 >= p.d / 4) { return mat4x4<f32>(); }
  if (fetchesKeys(t)) { return transpose(fetchK(start + d / 4)); }
  return transpose(fetchQ(start + d / 4));
}
fn fetchGradients(t: Thread, start: vec4<u32>, d: u32) -> mat4x4<f32> {
  if (t.i >= 128 || d / 4 + t.i % 4 >= p.d / 4) { return mat4x4<f32>(); }
  if (fetchesKeys(t)) { return transpose(fetchV(start + d / 4)); }
  return transpose(fetchDy(start + d / 4));
}
fn fetchQ(i: vec4<u32>) -> mat4x4<f32> { return mat4x4(vec4<f32>(q[i.x]), vec4<f32>(q[i.y]), vec4<f32>(q[i.z]), vec4<f32>(q[i.w])); }
fn fetchK(i: vec4<u32>) -> mat4x4<f32> { return mat4x4(vec4<f32>(k[i.x]), vec4<f32>(k[i.y]), vec4<f32>(k[i.z]), vec4<f32>(k[i.w])); }
fn fetchV(i: vec4<u32>) -> mat4x4<f32> { return mat4x4(vec4<f32>(v[i.x]), vec4<f32>(v[i.y]), vec4<f32>(v[i.z]), vec4<f32>(v[i.w])); }
fn fetchDy(i: vec4<u32>) -> mat4x4<f32> { return mat4x4(vec4<f32>(dy[i.x]), vec4<f32>(dy[i.y]), vec4<f32>(dy[i.z]), vec4<f32>(dy[i.w])); }
fn stage(t: Thread, f: mat4x4<f32>) {
  workgroupBarrier();
  if (t.i < 128) {
    let to = t.i / 64 * 256 + t.i % 4 * 64 + ((t.i % 64 / 4) ^ (t.i % 4 * 2));
    slices[to] = f[0]; slices[to + 16] = f[1]; slices[to + 32] = f[2]; slices[to + 48] = f[3];
  }
  workgroupBarrier();
}
/// Where the vectors start that a thread fetches of a slice of values, from right item m + n on; past the end of D, the last vector.
fn valueStarts(at: Place, m: u32, n: u32, t: Thread) -> vec4<u32> {
  return p.d / 4 * items(at, m, n + t.i / VECTORS, THREADS / VECTORS, KEYS_LEFT == 0) + min(t.i % VECTORS, p.d / 4 - 1);
}
fn fetchRight(i: vec4<u32>) -> mat4x4<f32> { if (KEYS_LEFT != 0) { return fetchQ(i); } return fetchK(i); }
/// Stores a slice of values and, for every 32 right items, their weights.
fn stageValues(t: Thread, f: mat4x4<f32>, w: Scores, n: u32) {
  workgroupBarrier();
  if (n % 32 == 0 && t.right / 8 == n / 32) {
    let i = t.right % 8 * 64 + (t.left ^ (t.right % 8));
    tile[i] = w.a[0]; tile[i + 16] = w.a[1]; tile[i + 32] = w.a[2]; tile[i + 48] = w.a[3];
    if (THREADS == 128) { tile[i + 8] = w.b[0]; tile[i + 24] = w.b[1]; tile[i + 40] = w.b[2]; tile[i + 56] = w.b[3]; }
  }
  slices[t.i] = f[0]; slices[t.i + THREADS] = f[1];
  if (THREADS == 128) { slices[t.i + 256] = f[2]; slices[t.i + 384] = f[3]; }
  workgroupBarrier();
}
fn mad(sum: mat4x4<f32>, s: vec4<f32>, v: vec4<f32>) -> mat4x4<f32> {
  return mat4x4(fma(vec4(s.x), v, sum[0]), fma(vec4(s.y), v, sum[1]), fma(vec4(s.z), v, sum[2]), fma(vec4(s.w), v, sum[3]));
}
fn addScore(sums: Scores, l: u32, r: u32) -> Scores {
  let right = slices[256 + r];
  let a = mad(sums.a, right, slices[l]);
  if (THREADS == 256) { return Scores(a, a); }
  return Scores(a, mad(sums.b, right, slices[l + 8]));
}
/// Adds left · right over the 16 of D in `slices`, which start at d.
fn addScores(sums: Scores, d: u32, t: Thread) -> Scores {
  var w = sums;
  for (var g = 0u; g < min(4, (p.d - d) / 4); g++) { // the bound depends on a parameter: a driver that unrolled this would compile for minutes
    let l = g * 64 + (t.left ^ (g * 2));
    let r = g * 64 + (t.right ^ (g * 2));
    w = addScore(addScore(addScore(addScore(w, l, r), l + 16, r + 16), l + 32, r + 32), l + 48, r + 48);
  }
  return w;
}
fn addValue(sums: Sums, i: u32, j: u32) -> Sums {
  var o = sums;
  let w = tile[i];
  let v0 = slices[j];
  o.a0 = mad(o.a0, w, v0);
  if (VECTORS > 16) { o.a1 = mad(o.a1, w, slices[j + 16]); }
  if (VECTORS > 32) { o.a2 = mad(o.a2, w, slices[j + 32]); o.a3 = mad(o.a3, w, slices[j + 48]); }
  if (THREADS == 128) { o.b0 = mad(o.b0, tile[i + 8], v0); }
  if (THREADS == 128 && VECTORS > 16) { o.b1 = mad(o.b1, tile[i + 8], slices[j + 16]); }
  return o;
}
/// Adds weights · values over the right items in `slices`, which start at item n of a tile of `count`.
fn addValues(sums: Sums, n: u32, count: u32, t: Thread) -> Sums {
  var o = sums;
  for (var m = 0u; m < min(SLICE, count - n); m += 4) {
    let g = (n + m) % 32 / 4;
    let i = g * 64 + (t.left ^ g);
    let j = m * VECTORS + t.right;
    o = addValue(addValue(addValue(addValue(o, i, j), i + 16, j + VECTORS), i + 32, j + 2 * VECTORS), i + 48, j + 3 * VECTORS);
  }
  return o;
}
fn weights4(w: vec4<f32>, maxScore: vec4<f32>, log: vec4<f32>) -> vec4<f32> {
  return select(vec4<f32>(), exp(max(w - maxScore, vec4(-100.0)) - log), w > vec4(MASKED));
}
fn weights(w: mat4x4<f32>, maxScore: mat4x4<f32>, log: mat4x4<f32>) -> mat4x4<f32> {
  return mat4x4(weights4(w[0], maxScore[0], log[0]), weights4(w[1], maxScore[1], log[1]),
                weights4(w[2], maxScore[2], log[2]), weights4(w[3], maxScore[3], log[3]));
}
/// A number of each of four rows, laid out as their scores.
fn perRow(x: vec4<f32>) -> mat4x4<f32> {
  if (KEYS_LEFT == 0) { return mat4x4(x, x, x, x); }
  return mat4x4(x.xxxx, x.yyyy, x.zzzz, x.wwww);
}
/// Weights p (in a) and score gradients ds (in b), from scores w and dy·v x of left items 4 · t.left + j .. + 4.
fn gradient(at: Place, m: u32, t: Thread, j: u32, w: mat4x4<f32>, x: mat4x4<f32>) -> Scores {
  let i = p.firstQuery + items(at, m, 4 * select(t.left, t.right, KEYS_LEFT != 0) + select(j, 0, KEYS_LEFT != 0), 1, false);
  let stats = transpose(mat4x4(statsIn[i.x], statsIn[i.y], statsIn[i.z], statsIn[i.w]));
  let weight = weights(w, perRow(stats[0]), perRow(stats[1]));
  let rest = x - perRow(stats[2]);
  let by = perRow(stats[3]);
  return Scores(weight, mat4x4(weight[0] * rest[0] * by[0], weight[1] * rest[1] * by[1],
                               weight[2] * rest[2] * by[2], weight[3] * rest[3] * by[3]));
}
/// Publishes a number per left item to the other threads of its row, through `tile`, which no thread reads at this point.
fn share(x: PerLeft, t: Thread) {
  let i = t.right * 16 + (t.left ^ (t.right % 8));
  tile[i] = x.a;
  if (THREADS == 128) { tile[i + 8] = x.b; }
  workgroupBarrier();
}
fn readShared(i: u32, t: Thread) -> PerLeft {
  let j = i * 16 + (t.left ^ (i % 8));
  return PerLeft(tile[j], tile[select(j + 8, j, THREADS == 256)]);
}
/// Writes a vector to `out` or (`second`) to `dk`.
fn store(i: u32, v: vec4<f32>, second: bool) { if (second) { dk[i] = dk_v(v); } else { out[i] = out_v(v); } }
fn store4(at: Place, j: u32, c: u32, o: mat4x4<f32>, second: bool) {
  let i = p.d / 4 * (at.split * p.b * p.s * p.g + items(at, 0, j, 1, KEYS_LEFT != 0)) + c;
  let end = select(0, select(rows(), p.s, KEYS_LEFT != 0), c < p.d / 4);
  let exists = vec4(at.first + j) + vec4(0, 1, 2, 3) < vec4(end);
  if (exists.x) { store(i.x, o[0], second); } if (exists.y) { store(i.y, o[1], second); }
  if (exists.z) { store(i.z, o[2], second); } if (exists.w) { store(i.w, o[3], second); }
}
fn storeSums(at: Place, t: Thread, o: Sums, second: bool) {
  let j = t.left * 4;
  store4(at, j, t.right, o.a0, second);
  if (VECTORS > 16) { store4(at, j, t.right + 16, o.a1, second); }
  if (VECTORS > 32) { store4(at, j, t.right + 32, o.a2, second); store4(at, j, t.right + 48, o.a3, second); }
  if (THREADS == 128) { store4(at, j + 32, t.right, o.b0, second); }
  if (THREADS == 128 && VECTORS > 16) { store4(at, j + 32, t.right + 16, o.b1, second); }
}
fn storeLse(at: Place, j: u32, maxScore: f32, sum: f32) {
  if (at.first + j < rows()) { lse[p.firstQuery + query(at, at.first, j)] = vec2(maxScore, select(0, log(sum), sum > 0)); }
}
fn storeLse4(at: Place, j: u32, maxScore: vec4<f32>, sum: vec4<f32>) {
  storeLse(at, j, maxScore.x, sum.x); storeLse(at, j + 1, maxScore.y, sum.y); storeLse(at, j + 2, maxScore.z, sum.z); storeLse(at, j + 3, maxScore.w, sum.w);
}
fn scaled(m: mat4x4<f32>, by: vec4<f32>) -> mat4x4<f32> { return mat4x4(m[0] * by.x, m[1] * by.y, m[2] * by.z, m[3] * by.w); }
fn scaledSums(o: Sums, by: PerLeft) -> Sums {
  return Sums(scaled(o.a0, by.a), scaled(o.a1, by.a), scaled(o.a2, by.a), scaled(o.a3, by.a), scaled(o.b0, by.b), scaled(o.b1, by.b));
}
fn columnMax(m: mat4x4<f32>) -> vec4<f32> { return max(max(m[0], m[1]), max(m[2], m[3])); }
/// First and end of the right side: keys visible to any row of the tile, or this split of the rows to which its keys are visible.
fn rangeOf(at: Place) -> vec2<u32> {
  if (KEYS_LEFT == 0) {
    let last = min(at.first + 63, rows() - 1) / heads();
    return vec2(0, u32(clamp(i32(last) + p.queryOffset + 1, 0, i32(p.s))));
  }
  let start = min(u32(max(i32(at.first) - p.queryOffset, 0)), p.t) * heads();
  let tiles = (rows() - start + 63) / 64;
  return min(start + vec2(tiles * at.split, tiles * (at.split + 1)) / p.splits * 64, vec2(rows()));
}

@compute @workgroup_size(THREADS)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) i: u32) {
  let at = placeOf(wg, nwg, rows(), 1);
  if (at.b >= p.b) { return; }
  let t = threadOf(i);
  var f: mat4x4<f32>;
  var o: Sums;
  var maxScore = PerLeft(vec4(MASKED), vec4(MASKED));
  var sum: PerLeft;
  let end = rangeOf(at).y;
  for (var m = 0u; m < end; m += 64) {
    let visible = visiblePairs(at, m, t);
    if (!anyVisible(visible, t)) { continue; }
    let start = scoreStarts(at, m, t);
    var w = Scores(); // explicit: Dawn would zero it only once, before the outer loop
    for (var d = 0u; d < p.d + 16; d += 16) {
      f = fetchScores(t, start, d);
      if (d > 0) { w = addScores(w, d - 16, t); }
      if (d < p.d) { stage(t, f); }
    }
    w = Scores(maskedScores(w.a, visible), maskedScores(w.b, visible >> 4));
    let before = maxScore;
    share(PerLeft(columnMax(w.a), columnMax(w.b)), t);
    for (var i = 0u; i < min(16, p.d * 4); i++) { maxScore = PerLeft(max(maxScore.a, readShared(i, t).a), max(maxScore.b, readShared(i, t).b)); }
    w = Scores(weights(w.a, mat4x4(maxScore.a, maxScore.a, maxScore.a, maxScore.a), mat4x4<f32>()),
               weights(w.b, mat4x4(maxScore.b, maxScore.b, maxScore.b, maxScore.b), mat4x4<f32>()));
    let factor = PerLeft(exp(max(before.a - maxScore.a, vec4(-100.0))), exp(max(before.b - maxScore.b, vec4(-100.0))));
    sum = PerLeft(sum.a * factor.a + w.a[0] + w.a[1] + w.a[2] + w.a[3], sum.b * factor.b + w.b[0] + w.b[1] + w.b[2] + w.b[3]);
    o = scaledSums(o, factor);
    let count = min(end - m, 64);
    for (var n = 0u; n < count + SLICE; n += SLICE) {
      if (n < count) { f = fetchV(valueStarts(at, m, n, t)); }
      if (n > 0) { o = addValues(o, n - SLICE, count, t); }
      if (n < count) { stageValues(t, f, w, n); }
    }
  }
  workgroupBarrier();
  share(sum, t);
  sum = PerLeft();
  for (var i = 0u; i < min(16, p.d * 4); i++) { sum = PerLeft(sum.a + readShared(i, t).a, sum.b + readShared(i, t).b); }
  let none = vec4<f32>();
  storeSums(at, t, scaledSums(o, PerLeft(select(none, 1 / sum.a, sum.a > none), select(none, 1 / sum.b, sum.b > none))), false);
  if (t.right == 0) { storeLse4(at, t.left * 4, maxScore.a, sum.a); }
  if (t.right == 0 && THREADS == 128) { storeLse4(at, t.left * 4 + 32, maxScore.b, sum.b); }
}

@compute @workgroup_size(THREADS)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) i: u32) {
  let at = placeOf(wg, nwg, select(rows(), p.s, KEYS_LEFT != 0), p.splits);
  if (at.b >= p.b) { return; }
  let t = threadOf(i);
  var f: mat4x4<f32>;
  var o: Sums;
  var oV: Sums;
  let range = rangeOf(at);
  for (var m = range.x; m < range.y; m += 64) {
    let visible = visiblePairs(at, m, t);
    if (!anyVisible(visible, t)) { continue; }
    let start = scoreStarts(at, m, t);
    var w = Scores(); // explicit: Dawn would zero it only once, before the outer loop
    var x = Scores();
    for (var n = 0u; n < 2; n++) { // a loop, so that the code for both is compiled once: software drivers compile slowly
      w = x;
      x = Scores();
      for (var d = 0u; d < p.d + 16; d += 16) {
        if (n == 0) { f = fetchScores(t, start, d); } else { f = fetchGradients(t, start, d); }
        if (d > 0) { x = addScores(x, d - 16, t); }
        if (d < p.d) { stage(t, f); }
      }
    }
    let a = gradient(at, m, t, 0, maskedScores(w.a, visible), x.a);
    let b = gradient(at, m, t, 32, maskedScores(w.b, visible >> 4), x.b);
    let count = min(range.y - m, 64);
    if (KEYS_LEFT != 0) {
      for (var n = 0u; n < count + SLICE; n += SLICE) {
        if (n < count) { f = fetchDy(valueStarts(at, m, n, t)); }
        if (n > 0) { oV = addValues(oV, n - SLICE, count, t); }
        if (n < count) { stageValues(t, f, Scores(a.a, b.a), n); }
      }
    }
    for (var n = 0u; n < count + SLICE; n += SLICE) {
      if (n < count) { f = fetchRight(valueStarts(at, m, n, t)); }
      if (n > 0) { o = addValues(o, n - SLICE, count, t); }
      if (n < count) { stageValues(t, f, Scores(a.b, b.b), n); }
    }
  }
  if (KEYS_LEFT != 0) { storeSums(at, t, oV, false); }
  storeSums(at, t, o, KEYS_LEFT != 0);
}
