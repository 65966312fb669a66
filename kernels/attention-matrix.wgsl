// attention on a GPU's subgroup matrices, where D is a multiple of 4 from 16 to 128: the mathematics of attention-tile.wgsl
//   in q k v dy: halves of f16-rows.wgsl, D of a row and the exponent of its power of two; marks statsIn as in attention-tile
//   out out: y (with lse), dq, or dv (with dk); dk and dv in parts [parts,B,S,G,D] that are to be added
//   grid: one workgroup of eight subgroups of 32 per 64 rows (backward_kv: per 64 keys and part) of one key head
//   why: as in attention-block.wgsl a tile is 64 x 64 and its left side has the sums; a product is 64 x 64 over 64, a subgroup
//   has 16 x 32 of it. Scores leave the units through workgroup memory, where each thread takes sixteen of one left item, and
//   go back as weights in halves. A unit's layout is the driver's secret, so sums cannot be rescaled where they are: weights are
//   relative to a maximum that stays until a row passes it by e^GROWTH, and only then all sums go through workgroup memory.
//   numerics: products of halves are exact, sums are f32. q, k, v, dy, weights p and their gradients ds are rounded to halves,
//   2^-11 of each. Powers of items that a sum runs over go with its weights, relative to the largest; p below 2^-14, and ds
//   below 2^-29 of their bound, are rounded to 2^-25 and 2^-40 of it instead. y, lse and dy·y are f32.
//   source: Dao 2023 (FlashAttention-2), algorithms 1 and 2
diagnostic(off, chromium.subgroup_matrix_uniformity);
enable f16, subgroups, chromium_experimental_subgroup_matrix;
requires immediate_address_space;

const MOST_D: u32 = 64; // room for D: 64 or 128
const MORE: u32 = MOST_D - 64; // past a product's columns
const KEYS_LEFT: u32 = 0; // 1 in backward_kv
const MASKED = -3.0e38; // finite, because WGSL may assume there are no infinities
const MASK: u32 = 1; const SEGMENTS: u32 = 2; // marks are bytes, 0 is padding, or pairs (segment, 0 where padding)
const GROWTH = 5.5; // weights are at most e^5.5 = 245
const BOUND: i32 = 23; // |dy·v - dy·y| <= 2 D · 2^15 · 2^15 of the rows' powers: 2^23 brings that below 2^15
const STEP: u32 = 18; // vectors of a row of 64 halves, and two more: 16 rows lie on different banks
const STEP_Y: u32 = 17; // and of 64 results

alias out_v = vec4<f32>;
alias dk_v = vec4<f32>;
alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;
alias Four = mat4x4<f16>; // vectors of four items
struct Params { // as in attention-block.wgsl
  b: u32, t: u32, s: u32, g: u32, h: u32, d: u32, queryOffset: i32, scale: f32, marks: u32, firstQuery: u32, firstKey: u32, parts: u32
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<vec4<f16>>; // q f16: @group(0) @binding(0) var<storage, read> q: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f16>>; // k f16: @group(0) @binding(1) var<storage, read> k: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f16>>; // v f16: @group(0) @binding(2) var<storage, read> v: array<vec4<f16>>;
@group(0) @binding(3) var<storage, read> marks: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<out_v>;
@group(0) @binding(5) var<storage, read_write> lse: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> dy: array<vec4<f16>>; // dy f16: @group(0) @binding(6) var<storage, read> dy: array<vec4<f16>>;
@group(0) @binding(7) var<storage, read> statsIn: array<vec4<f32>>; // (lse, dy·y, scale) of a query
@group(0) @binding(8) var<storage, read_write> dk: array<dk_v>;

var<workgroup> blockA: array<vec4<f16>, 64 * STEP>; // [left][64 of D, or of right items]
var<workgroup> blockB: array<vec4<f16>, 64 * STEP>; // [right][64 of D]
var<workgroup> results: array<vec4<f32>, 64 * STEP_Y>; // [left][64]
var<workgroup> rights: array<vec4<i32>, 128>; // [kind][16 times four right items]: what is known of them
var<workgroup> some: atomic<u32>; // whether some thread says so

/// Where a workgroup works: batch, key head, its first row or key, and its part of the other side.
struct Place { b: u32, g: u32, first: u32, part: u32 }
/// Left item t / 4 of a thread: exponents of its rows (q or k, dy or v), its position and segment, (lse, dy·y, scale).
struct Item { index: u32, ends: vec2<i32>, sight: vec2<i32>, stats: vec4<f32> }
/// Of a row: its largest score, what its weights are relative to, what is new about that, and their sum.
struct Softmax { high: f32, top: f32, factor: f32, sum: f32 }
fn heads() -> u32 { return p.h / p.g; }
fn rows() -> u32 { return p.t * heads(); }
/// Tile by tile, in each the heads one after the other; b is p.b past the end.
fn placeOf(wg: vec3<u32>, nwg: vec3<u32>, count: u32, parts: u32) -> Place {
  let i = wg.x + wg.y * nwg.x;
  let head = i / parts % (p.b * p.g);
  let nth = i / parts / (p.b * p.g);
  let tiles = (count + 63) / 64;
  if (nth >= tiles) { return Place(p.b, 0, 0, 0); }
  return Place(head / p.g, head % p.g, 64 * select(tiles - 1 - nth, nth, KEYS_LEFT != 0), i % parts);
}
/// Token of row `first + j`: heads are few, so the quotient of what is past the first one's token is exact in floats.
fn token(first: u32, j: u32) -> u32 {
  return first / heads() + u32((f32(first % heads() + j) + 0.5) * (1 / f32(heads())));
}
/// Index of row `first + j` among all queries, and of a key among all keys; past the end, the last one.
fn query(at: Place, first: u32, j: u32) -> u32 {
  let row = min(j, rows() - 1 - first);
  let t = token(first, row);
  return (at.b * p.t + t) * p.h + at.g * heads() + first + row - t * heads();
}
fn key(at: Place, s: u32) -> u32 { return (at.b * p.s + min(s, p.s - 1)) * p.g + at.g; }
fn item(at: Place, first: u32, j: u32, ofKeys: bool) -> u32 { if (ofKeys) { return key(at, first + j); } return query(at, first, j); }
/// First vectors of the four items from `first` on that a thread copies.
fn copied(at: Place, first: u32, t: u32, ofKeys: bool) -> vec4<u32> {
  let j = t / 16;
  return (p.d / 4 + 1) * vec4(item(at, first, j, ofKeys), item(at, first, j + 16, ofKeys),
                              item(at, first, j + 32, ofKeys), item(at, first, j + 48, ofKeys));
}
/// Vectors c of items for product n: scores (0) or dy·v (1). Zero past the end of D, without a branch: subgroups have to stay together.
fn fetch(n: u32, i: vec4<u32>, c: u32, ofKeys: bool) -> Four {
  let a = i + min(c, p.d / 4 - 1);
  var f: Four;
  if (ofKeys && n == 0) { f = Four(k[a.x], k[a.y], k[a.z], k[a.w]); } else if (ofKeys) { f = Four(v[a.x], v[a.y], v[a.z], v[a.w]); }
  else if (n == 0) { f = Four(q[a.x], q[a.y], q[a.z], q[a.w]); } else { f = Four(dy[a.x], dy[a.y], dy[a.z], dy[a.w]); }
  let none = vec4<f16>(); let is = c < p.d / 4;
  return Four(select(none, f[0], is), select(none, f[1], is), select(none, f[2], is), select(none, f[3], is));
}
fn fetchLeft(n: u32, i: vec4<u32>, c: u32) -> Four { return fetch(n, i, c, KEYS_LEFT != 0); }
fn fetchRight(n: u32, i: vec4<u32>, c: u32) -> Four { return fetch(n, i, c, KEYS_LEFT == 0); }
// From vector i of four rows that are 16 apart.
fn keepLeft(i: u32, f: Four) { blockA[i] = f[0]; blockA[i + 16 * STEP] = f[1]; blockA[i + 32 * STEP] = f[2]; blockA[i + 48 * STEP] = f[3]; }
fn keepRight(i: u32, f: Four) { blockB[i] = f[0]; blockB[i + 16 * STEP] = f[1]; blockB[i + 32 * STEP] = f[2]; blockB[i + 48 * STEP] = f[3]; }
fn keep(i: u32, f: Four, g: Four) { workgroupBarrier(); keepLeft(i, f); keepRight(i, g); workgroupBarrier(); }
// A subgroup has rows 16 · (n % 4) .. and columns 32 · (n / 4) .. of a product: its part `u` is (row, column).
fn loadA(u: vec2<u32>, k: u32) -> Left { return subgroupMatrixLoad<Left, row_major>(&blockA, u.x * STEP + k / 4, STEP); }
/// The sum with 16 steps of a product: of scores or dy·v over D, and of weights and values over right items.
fn addItems(a: Left, col: u32, k: u32, c: Sum) -> Sum {
  return subgroupMatrixMultiplyAccumulate(a, subgroupMatrixLoad<Right, col_major>(&blockB, col * STEP + k / 4, STEP), c);
}
fn addD(a: Left, col: u32, k: u32, c: Sum) -> Sum {
  return subgroupMatrixMultiplyAccumulate(a, subgroupMatrixLoad<Right, row_major>(&blockB, k * STEP + col / 4, STEP), c);
}
fn put(u: vec2<u32>, c0: Sum, c1: Sum) {
  let i = u.x * STEP_Y + u.y / 4;
  subgroupMatrixStore<row_major>(&results, i, c0, STEP_Y);
  subgroupMatrixStore<row_major>(&results, i + 4, c1, STEP_Y);
}
fn publish(u: vec2<u32>, c0: Sum, c1: Sum) { workgroupBarrier(); put(u, c0, c1); workgroupBarrier(); }
fn take(u: vec2<u32>) -> Sum { return subgroupMatrixLoad<Sum, row_major>(&results, u.x * STEP_Y + u.y / 4, STEP_Y); }
/// Two sums through `results`, where threads multiply them by what is theirs; `take` has them back.
fn rescale(t: u32, u: vec2<u32>, c0: Sum, c1: Sum, by: f32) {
  publish(u, c0, c1);
  let i = t / 4 * STEP_Y + t % 4;
  results[i] *= by; results[i + 4] *= by; results[i + 8] *= by; results[i + 12] *= by;
  workgroupBarrier();
}
/// 2^(e - 127), 0 where that is none.
fn power(e: i32) -> f32 { return bitcast<f32>(u32(clamp(e, 0, 254)) << 23); }
fn powers(e: vec4<i32>) -> vec4<f32> { return bitcast<vec4<f32>>(vec4<u32>(clamp(e, vec4(0), vec4(254))) << vec4(23u)); }
/// Exponents (biased by 127) of an item's rows: of k and v, or of q and dy.
fn ends(i: u32, ofKeys: bool) -> vec2<i32> {
  let end = i * (p.d / 4 + 1) + p.d / 4;
  if (ofKeys) { return vec2(i32(k[end].x), i32(v[end].x)); } return vec2(i32(q[end].x), i32(dy[end].x));
}
/// The largest of what all threads have. Uses `results`, which nobody reads.
fn largest(t: u32, mine: vec4<i32>) -> vec4<i32> {
  results[t] = vec4<f32>(mine);
  for (var step = 128u; step > 0; step /= 2) {
    workgroupBarrier();
    if (t < step) { results[t] = max(results[t], results[t + step]); }
  }
  workgroupBarrier();
  return vec4<i32>(results[0]);
}
fn largestEnds(at: Place, t: u32, range: vec2<u32>, ofKeys: bool) -> vec2<i32> {
  var e = vec2<i32>();
  for (var r = range.x + t; r < range.y; r += 256) { e = max(e, ends(item(at, r, 0, ofKeys), ofKeys)); }
  return e;
}
/// (k, v, q, dy) of all keys that the sums see, and of the rows in `range`.
fn tops(at: Place, t: u32, range: vec2<u32>) -> vec4<i32> {
  if (KEYS_LEFT == 0) { return largest(t, vec4(largestEnds(at, t, range, true), 0, 0)); }
  return largest(t, vec4(largestEnds(at, t, vec2(0, p.s), true), largestEnds(at, t, range, false)));
}
/// Position of a key, or one that no row reaches.
fn reach(at: Place, s: u32) -> i32 {
  let i = p.firstKey + at.b * p.s + min(s, p.s - 1);
  var open = s < p.s;
  if (p.marks == MASK) { open = open && ((marks[i / 4] >> (i % 4 * 8)) & 0xff) != 0; }
  if (p.marks == SEGMENTS) { open = open && marks[2 * i + 1] != 0; }
  return select(0x7fffffff, i32(s), open);
}
fn segment(at: Place, position: i32) -> i32 {
  if (p.marks != SEGMENTS) { return 0; }
  return i32(marks[2 * (p.firstKey + at.b * p.s + u32(clamp(position, 0, i32(p.s) - 1)))]);
}
/// Position and segment of item first + j; a row past the end sees nothing.
fn sight(at: Place, first: u32, j: u32, ofKeys: bool) -> vec2<i32> {
  if (ofKeys) { return vec2(reach(at, first + j), segment(at, i32(first + j))); }
  let position = select(-1, min(p.queryOffset + i32(token(first, j)), i32(p.s) - 1), first + j < rows());
  return vec2(position, segment(at, position));
}
/// The left item of a thread.
fn leftOf(at: Place, t: u32, stats: vec4<f32>) -> Item {
  let i = item(at, at.first, t / 4, KEYS_LEFT != 0);
  return Item(i, ends(i, KEYS_LEFT != 0), sight(at, at.first, t / 4, KEYS_LEFT != 0), stats);
}
/// Number `kind` of the right item m + j: exponents, position, segment.
fn known(at: Place, m: u32, j: u32, kind: u32) -> i32 {
  if (kind > 1) { return sight(at, m, j, KEYS_LEFT == 0)[kind - 2]; } return ends(item(at, m, j, KEYS_LEFT == 0), KEYS_LEFT == 0)[kind];
}
fn note(at: Place, m: u32, t: u32) {
  let j = t % 16 * 4;
  let n = t / 16;
  if (n < 4) { rights[t] = vec4(known(at, m, j, n), known(at, m, j + 1, n), known(at, m, j + 2, n), known(at, m, j + 3, n)); }
  if (t == 0) { atomicStore(&some, 0); }
}
/// Of queries on the right what statistics say as well.
fn noteStatistics(at: Place, m: u32, t: u32) {
  if (KEYS_LEFT == 0 || t / 64 != 1) { return; }
  let j = t % 16 * 4;
  let n = t % 64 / 16;
  let i = p.firstQuery + vec4(query(at, m, j), query(at, m, j + 1), query(at, m, j + 2), query(at, m, j + 3));
  rights[t] = bitcast<vec4<i32>>(vec4(statsIn[i.x][n], statsIn[i.y][n], statsIn[i.z][n], statsIn[i.w][n]));
}
/// Which of four right items and a left one are a row and a key that it sees.
fn sees(left: Item, g: u32) -> vec4<bool> {
  let at = rights[32 + g];
  let same = rights[48 + g] == vec4(left.sight.y);
  if (KEYS_LEFT != 0) { return (vec4(left.sight.x) <= at) & same; } return (at <= vec4(left.sight.x)) & same;
}
/// Whether some thread sees something: asked where segments may hide all of a tile.
fn isSeen(left: Item, t: u32) -> bool {
  if (p.marks != SEGMENTS) { return true; }
  workgroupBarrier();
  if (any(sees(left, t % 4) | sees(left, t % 4 + 4) | sees(left, t % 4 + 8) | sees(left, t % 4 + 12))) { atomicStore(&some, 1); }
  return workgroupUniformLoad(&some) != 0;
}
/// Four results as scores, scaled, and MASKED where hidden.
fn score(left: Item, t: u32, g: u32) -> vec4<f32> {
  let w = results[t / 4 * STEP_Y + g] * powers(rights[g] + vec4(left.ends.x - 127)) * p.scale;
  return select(vec4(MASKED), w, sees(left, g));
}
fn scores(left: Item, t: u32) -> mat4x4<f32> {
  let g = t % 4;
  return mat4x4(score(left, t, g), score(left, t, g + 4), score(left, t, g + 8), score(left, t, g + 12));
}
/// What four right items that are queries have of their statistics, or four times the left one's.
fn statistic(left: Item, n: u32, g: u32) -> vec4<f32> {
  if (KEYS_LEFT != 0) { return bitcast<vec4<f32>>(rights[(4 + n) * 16 + g]); } return vec4(left.stats[n]);
}
fn weight(left: Item, w: vec4<f32>, g: u32) -> vec4<f32> {
  let x = exp(max(w - statistic(left, 0, g), vec4(-100.0)) - statistic(left, 1, g));
  return select(vec4<f32>(), x, w > vec4(MASKED));
}
fn weights(left: Item, t: u32, w: mat4x4<f32>) -> mat4x4<f32> {
  let g = t % 4;
  return mat4x4(weight(left, w[0], g), weight(left, w[1], g + 4), weight(left, w[2], g + 8), weight(left, w[3], g + 12));
}
/// Gradients of four scores, without their scale, times the power of what they are relative to.
fn gradient(left: Item, w: vec4<f32>, t: u32, g: u32, relative: i32) -> vec4<f32> {
  let x = results[t / 4 * STEP_Y + g] * powers(rights[16 + g] + vec4(left.ends.y - 127));
  let counts = select(vec4<f32>(), w, statistic(left, 3, g) != vec4<f32>());
  return counts * (x - statistic(left, 2, g)) * power(254 - relative);
}
fn gradients(left: Item, t: u32, w: mat4x4<f32>, relative: i32) -> mat4x4<f32> {
  let g = t % 4;
  return mat4x4(gradient(left, w[0], t, g, relative), gradient(left, w[1], t, g + 4, relative),
                gradient(left, w[2], t, g + 8, relative), gradient(left, w[3], t, g + 12, relative));
}
/// Four weights times powers of the values that they are multiplied with.
fn half4(w: vec4<f32>, e: vec4<i32>) -> vec4<f16> { return vec4<f16>(clamp(w * powers(e), vec4(-65504.0), vec4(65504.0))); }
/// Weights to `blockA`; exponents of their values (0: first, 1: second) count from the largest.
fn keepWeights(t: u32, w: mat4x4<f32>, kind: u32, top: i32) {
  let i = t / 4 * STEP + t % 4;
  let j = kind * 16 + t % 4;
  let by = vec4(127 - top);
  blockA[i] = half4(w[0], rights[j] + by); blockA[i + 4] = half4(w[1], rights[j + 4] + by);
  blockA[i + 8] = half4(w[2], rights[j + 8] + by); blockA[i + 12] = half4(w[3], rights[j + 12] + by);
}
/// Two sums, of 64 columns from vector c on, to `out`, or `dk`, times two powers.
fn finish(at: Place, left: Item, t: u32, u: vec2<u32>, c0: Sum, c1: Sum, c: u32, by: vec2<f32>, second: bool) {
  publish(u, c0, c1);
  if (at.first + t / 4 >= select(rows(), p.s, KEYS_LEFT != 0)) { return; }
  let to = p.d / 4 * (at.part * p.b * p.s * p.g + left.index) + c;
  for (var i = t % 4; i < min(16, p.d / 4 - c); i += 4) {
    let x = results[t / 4 * STEP_Y + i] * by.x * by.y;
    if (second) { dk[to + i] = dk_v(x); } else { out[to + i] = out_v(x); }
  }
}
fn most(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
/// A number of each of a left item's four threads, for all of them to see; results of a thread's own are read.
fn meet(t: u32, x: f32) -> vec4<f32> {
  let i = t / 4 * STEP_Y;
  results[i + t % 4] = vec4(x);
  workgroupBarrier();
  return vec4(results[i].x, results[i + 1].x, results[i + 2].x, results[i + 3].x);
}
/// A row with sixteen more scores of each of its threads; `some` says whether a row's sums are to be rescaled.
fn follow(row: Softmax, t: u32, w: mat4x4<f32>) -> Softmax {
  let here = most(meet(t, most(max(max(w[0], w[1]), max(w[2], w[3])))));
  let top = select(row.top, here, here > row.top + GROWTH);
  if (top > row.top && row.top > MASKED) { atomicStore(&some, 1); }
  return Softmax(max(row.high, here), top, exp(max(row.top - top, -100.0)), row.sum);
}
/// The right side: the keys that some row sees, or of the rows that see a key of the tile those of this part. First, and past the last.
fn rangeOf(at: Place) -> vec2<u32> {
  if (KEYS_LEFT == 0) {
    let last = min(at.first + 63, rows() - 1) / heads();
    return vec2(0, u32(clamp(i32(last) + p.queryOffset + 1, 0, i32(p.s))));
  }
  let start = min(u32(max(i32(at.first) - p.queryOffset, 0)), p.t) * heads();
  let tiles = (rows() - start + 63) / 64;
  return min(start + vec2(tiles * at.part, tiles * (at.part + 1)) / p.parts * 64, vec2(rows()));
}
fn unitOf(subgroup: u32) -> vec2<u32> { return vec2(subgroup % 4 * 16, subgroup / 4 * 32); }
@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
           @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32) {
  let at = placeOf(wg, nwg, rows(), 1);
  if (at.b >= p.b) { return; }
  let u = unitOf(subgroup);
  var left = leftOf(at, t, vec4<f32>());
  let starts = copied(at, at.first, t, false);
  let c = t % 16; let to = t / 16 * STEP + c;
  let end = rangeOf(at).y;
  let values = tops(at, t, vec2(0, end)).y;
  var o0 = Sum(); var o1 = Sum(); var o2 = Sum(); var o3 = Sum();
  var row = Softmax(MASKED, MASKED, 1, 0);
  for (var m = 0u; m < end; m += 64) {
    note(at, m, t);
    if (!isSeen(left, t)) { continue; }
    let others = copied(at, m, t, true);
    var f = fetchLeft(0, starts, c); var g = fetchRight(0, others, c);
    var s0 = Sum(); var s1 = Sum();
    for (var d = 0u; d < p.d; d += 64) {
      keep(to, f, g);
      let next = c + d / 4 + 16;
      if (d + 64 < p.d) { f = fetchLeft(0, starts, next); g = fetchRight(0, others, next); } else { g = fetchRight(1, others, c); }
      for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); s0 = addItems(a, u.y, i, s0); s1 = addItems(a, u.y + 16, i, s1); }
    }
    put(u, s0, s1); if (t == 0) { atomicStore(&some, 0); }
    workgroupBarrier();
    var w = scores(left, t);
    row = follow(row, t, w);
    left.stats.x = row.top;
    w = weights(left, t, w);
    row.sum = row.sum * row.factor + dot(w[0] + w[1] + w[2] + w[3], vec4(1.0));
    keepWeights(t, w, 1, values); keepRight(to, g);
    if (workgroupUniformLoad(&some) != 0) {
      rescale(t, u, o0, o1, row.factor);
      o0 = take(u); o1 = take(u + vec2(0, 16));
      if (MORE > 0) { rescale(t, u, o2, o3, row.factor); o2 = take(u); o3 = take(u + vec2(0, 16)); }
    }
    g = fetchRight(1, others, c + 16);
    for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); o0 = addD(a, u.y, i, o0); o1 = addD(a, u.y + 16, i, o1); }
    if (MORE > 0) { workgroupBarrier(); keepRight(to, g); workgroupBarrier(); }
    for (var i = 0u; i < MORE; i += 16) { let a = loadA(u, i); o2 = addD(a, u.y, i, o2); o3 = addD(a, u.y + 16, i, o3); }
  }
  workgroupBarrier();
  let sum = dot(meet(t, row.sum), vec4(1.0));
  if (t % 4 == 0 && at.first + t / 4 < rows()) {
    lse[p.firstQuery + left.index] = vec2(row.high, select(0, log(sum) + row.top - row.high, sum > 0));
  }
  let by = vec2(select(0, 1 / sum, sum > 0), power(values));
  finish(at, left, t, u, o0, o1, 0, by, false);
  if (MORE > 0) { finish(at, left, t, u, o2, o3, 16, by, false); }
}

@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
            @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32) {
  let at = placeOf(wg, nwg, select(rows(), p.s, KEYS_LEFT != 0), p.parts);
  if (at.b >= p.b) { return; }
  let u = unitOf(subgroup);
  let left = leftOf(at, t, statsIn[p.firstQuery + select(item(at, at.first, t / 4, KEYS_LEFT != 0), 0, KEYS_LEFT != 0)]);
  let starts = copied(at, at.first, t, KEYS_LEFT != 0);
  let c = t % 16; let to = t / 16 * STEP + c;
  let range = rangeOf(at);
  let all = tops(at, t, range);
  let relative = all.y + select(left.ends.y, all.w, KEYS_LEFT != 0) - 127 + BOUND;
  let values = select(all.x, all.z, KEYS_LEFT != 0); // what gradients of scores are multiplied with
  var o0 = Sum(); var o1 = Sum(); var o2 = Sum(); var o3 = Sum();
  var v0 = Sum(); var v1 = Sum(); var v2 = Sum(); var v3 = Sum();
  for (var m = range.x; m < range.y; m += 64) {
    note(at, m, t);
    noteStatistics(at, m, t);
    if (!isSeen(left, t)) { continue; }
    let others = copied(at, m, t, KEYS_LEFT == 0);
    var f = fetchLeft(0, starts, c); var g = fetchRight(0, others, c);
    var w: mat4x4<f32>; var x: mat4x4<f32>;
    for (var n = 0u; n < 2; n++) {
      var s0 = Sum(); var s1 = Sum();
      for (var d = 0u; d < p.d; d += 64) {
        keep(to, f, g);
        let product = n + u32(d + 64 >= p.d); // what is next on its way
        let next = c + select(0, d / 4 + 16, product == n);
        if (product < 2) { f = fetchLeft(product, starts, next); }
        g = fetchRight(select(product, KEYS_LEFT, product == 2), others, next);
        for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); s0 = addItems(a, u.y, i, s0); s1 = addItems(a, u.y + 16, i, s1); }
      }
      put(u, s0, s1);
      workgroupBarrier();
      if (n == 0) { w = weights(left, t, scores(left, t)); } else { x = gradients(left, t, w, relative); }
    }
    if (KEYS_LEFT != 0) {
      keepWeights(t, w, 1, all.w); keepRight(to, g);
      workgroupBarrier();
      g = fetchRight(1, others, c + 16);
      for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); v0 = addD(a, u.y, i, v0); v1 = addD(a, u.y + 16, i, v1); }
      if (MORE > 0) { workgroupBarrier(); keepRight(to, g); workgroupBarrier(); }
      for (var i = 0u; i < MORE; i += 16) { let a = loadA(u, i); v2 = addD(a, u.y, i, v2); v3 = addD(a, u.y + 16, i, v3); }
      g = fetchRight(0, others, c);
      workgroupBarrier();
    }
    keepWeights(t, x, 0, values); keepRight(to, g);
    workgroupBarrier();
    g = fetchRight(0, others, c + 16);
    for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); o0 = addD(a, u.y, i, o0); o1 = addD(a, u.y + 16, i, o1); }
    if (MORE > 0) { workgroupBarrier(); keepRight(to, g); workgroupBarrier(); }
    for (var i = 0u; i < MORE; i += 16) { let a = loadA(u, i); o2 = addD(a, u.y, i, o2); o3 = addD(a, u.y + 16, i, o3); }
  }
  let by = vec2(p.scale * power(relative), power(values));
  finish(at, left, t, u, o0, o1, 0, by, KEYS_LEFT != 0);
  if (MORE > 0) { finish(at, left, t, u, o2, o3, 16, by, KEYS_LEFT != 0); }
  if (KEYS_LEFT == 0) { return; }
  finish(at, left, t, u, v0, v1, 0, vec2(1, power(all.w)), false);
  if (MORE > 0) { finish(at, left, t, u, v2, v3, 16, vec2(1, power(all.w)), false); }
}
