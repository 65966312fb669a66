// attention-tile.wgsl's mathematics on subgroup matrices (tensor cores on NVIDIA), where D is a multiple of 4 from 16 to 128
//   in q k v dy: f16 rows with scale exponents [..,D + 4] (f16-rows.wgsl); mask statsIn as in attention-tile
//   out out: y (with lse), dq, or dv (with dk); with splits > 1, dk and dv are partial results [splits,B,S,G,D] to be added
//   grid: one workgroup of eight subgroups of 32 per 64 rows of one key head (backward_kv: per 64 keys and split of the rows)
//   why: the tile of attention-block.wgsl, 64 x 64, whose left side (rows, or keys in backward_kv) has the sums. A subgroup keeps 16
//   left items as operands, so only the right side passes through workgroup memory, as items (for sums over D) and values (for sums
//   over items); it multiplies half of the right items, or half of D. What is staged next is fetched before the multiplications
//   that it waits for. Scores pass through workgroup memory, where a thread takes sixteen of one left item, and return as f16
//   weights. A subgroup matrix has an opaque layout, so sums cannot be rescaled in place: the `shift` of weights changes only when
//   a row exceeds it by GROWTH, and then all sums pass through that memory.
//   numerics: products of f16 values are exact and sums are f32. q, k, v, dy, weights p and score gradients ds are rounded to
//   f16, 2^-11 of each. The scales of items that a sum runs over are moved into its weights, relative to the largest scale;
//   p below 2^-14 then has an error of 2^-25, and ds below 2^-29 of its bound one of 2^-40 of the bound. y, lse, dy·y are f32.
//   source: Dao 2023 (FlashAttention-2), algorithms 1 and 2
diagnostic(off, chromium.subgroup_matrix_uniformity);
enable f16, subgroups, chromium_experimental_subgroup_matrix;
requires immediate_address_space;

const MAX_D: u32 = 64; // D at most: 64 or 128
const HALF_D: u32 = MAX_D / 2;
const KEYS_LEFT: u32 = 0; // 1 in backward_kv
const FIRST: u32 = 1 - KEYS_LEFT; // matmul that backward begins with: it ends with k staged for dq, q for dk
const MASKED = -3.0e38; // finite, because WGSL may assume there are no infinities
const KEY_MASK: u32 = 1; const SEGMENTS: u32 = 2; // mask is bytes, 0 for padding, or pairs (segment, key mask)
const GROWTH = 5.5; // weights are at most e^5.5 = 245
const BOUND: i32 = 23; // |dy·v - dy·y| <= 2 D · 2^15 · 2^15 times both rows' scales; dividing by 2^23 brings that below 2^15
// Vectors from row to row of 64 and HALF_D f16 values and of 32 f32 results, with padding, so that 8 rows lie on different banks.
const STEP: u32 = 18; const STEP_D: u32 = HALF_D / 4 + 2; const STEP_Y: u32 = 9;
alias out_v = vec4<f32>;
alias dk_v = vec4<f32>;
alias Left = subgroup_matrix_left<f16, 16, 16>; alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;
alias Four = mat4x4<f16>; // one vector of each of four items
struct Eight { a: Four, b: Four } // b is used where D may be over 64
struct Params { // as in attention-block.wgsl
  b: u32, t: u32, s: u32, g: u32, h: u32, d: u32, queryOffset: i32, scale: f32, maskKind: u32, firstQuery: u32, firstKey: u32, splits: u32
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<vec4<f16>>; // q f16: @group(0) @binding(0) var<storage, read> q: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f16>>; // k f16: @group(0) @binding(1) var<storage, read> k: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f16>>; // v f16: @group(0) @binding(2) var<storage, read> v: array<vec4<f16>>;
@group(0) @binding(3) var<storage, read> mask: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<out_v>;
@group(0) @binding(5) var<storage, read_write> lse: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> dy: array<vec4<f16>>; // dy f16: @group(0) @binding(6) var<storage, read> dy: array<vec4<f16>>;
@group(0) @binding(7) var<storage, read> statsIn: array<vec4<f32>>; // (lse, dy·y, scale) of a query
@group(0) @binding(8) var<storage, read_write> dk: array<dk_v>;

// Strips of 16 items, so that a subgroup matrix begins at a constant of one: Dawn checks the bounds of each, which folds away there.
var<workgroup> right: array<array<vec4<f16>, 16 * STEP_D>, 8>; // [4 strips of right items · 2 + half of D][16 items][HALF_D]
var<workgroup> weightsF16: array<array<vec4<f16>, 16 * STEP>, 4>; // per 16 left items [16][64 right items]
var<workgroup> results: array<array<vec4<f32>, 16 * STEP_Y>, 8>; // per subgroup [16 left][32]
var<workgroup> rightInfo: array<vec4<i32>, 128>; // [kind][16 groups of four right items]; for the kinds see fetchInfo, fetchInfoStats
var<workgroup> isSeen: atomic<u32>; var<workgroup> hasGrown: atomic<u32>; // set if any pair is visible, or any sums have to be rescaled

/// The tile of a workgroup: batch, key head, first row or key, and split of the other side.
struct Place { b: u32, g: u32, first: u32, split: u32 }
/// Left item t / 4 of thread t: scale exponents of (q, dy) or (k, v), visibility (position, segment), stats (lse, dy·y, scale).
struct Item { index: u32, exponents: vec2<i32>, visibility: vec2<i32>, stats: vec4<f32> }
/// Of a right item what will be staged, as it comes from memory: nothing waits for it before then.
struct Info { exponent: f16, position: i32, word: u32, stat: f32 }
/// Running softmax of a row: maximum score, shift of its weights, factor for the sums so far, and sum of weights.
struct Softmax { maxScore: f32, shift: f32, factor: f32, sum: f32 }
fn heads() -> u32 { return p.h / p.g; }
fn rows() -> u32 { return p.t * heads(); }
/// Workgroups go tile by tile, and through all heads of a tile; b is p.b past the end.
fn placeOf(wg: vec3<u32>, nwg: vec3<u32>, count: u32, splits: u32) -> Place {
  let i = wg.x + wg.y * nwg.x; let head = i / splits % (p.b * p.g); let index = i / splits / (p.b * p.g);
  let tiles = (count + 63) / 64;
  if (index >= tiles) { return Place(p.b, 0, 0, 0); }
  return Place(head / p.g, head % p.g, 64 * select(tiles - 1 - index, index, KEYS_LEFT != 0), i % splits);
}
/// Token of row `first + j`; there are few heads, so this quotient is exact in f32.
fn token(first: u32, j: u32) -> u32 { return first / heads() + u32((f32(first % heads() + j) + 0.5) * (1 / f32(heads()))); }
/// Index of row `first + j` among all queries, and (key) of a key among all keys; past the end, that of the last one.
fn query(at: Place, first: u32, j: u32) -> u32 {
  let start = min(first, rows() - 1); let row = min(j, rows() - 1 - start); let t = token(start, row);
  return (at.b * p.t + t) * p.h + at.g * heads() + start + row - t * heads();
}
fn key(at: Place, s: u32) -> u32 { return (at.b * p.s + min(s, p.s - 1)) * p.g + at.g; }
fn item(at: Place, first: u32, j: u32, ofKeys: bool) -> u32 { if (ofKeys) { return key(at, first + j); } return query(at, first, j); }
fn items(at: Place, first: u32, j: u32, ofKeys: bool) -> vec4<u32> {
  return vec4(item(at, first, j, ofKeys), item(at, first, j + 16, ofKeys), item(at, first, j + 32, ofKeys), item(at, first, j + 48, ofKeys));
}
/// Vectors a of what matmul n multiplies: for scores (0) q and k, for dy·v (1) dy and v.
fn vectors(n: u32, a: vec4<u32>, ofKeys: bool) -> Four {
  if (ofKeys) { if (n == 0) { return Four(k[a.x], k[a.y], k[a.z], k[a.w]); } return Four(v[a.x], v[a.y], v[a.z], v[a.w]); }
  if (n == 0) { return Four(q[a.x], q[a.y], q[a.z], q[a.w]); } return Four(dy[a.x], dy[a.y], dy[a.z], dy[a.w]);
}
/// What a thread stages of 64 items from `first` on: of items t / 16 + 0, 16, 32, 48 vector t % 16, and the one 16 further.
fn fetch(at: Place, n: u32, first: u32, t: u32, ofKeys: bool) -> Eight {
  let i = (p.d / 4 + 1) * items(at, first, t / 16, ofKeys); let last = p.d / 4 - 1;
  return Eight(vectors(n, i + min(t % 16, last), ofKeys), vectors(n, i + min(t % 16 + 16, last), ofKeys));
}
fn fetchRight(at: Place, n: u32, first: u32, t: u32) -> Eight { return fetch(at, n, first, t, KEYS_LEFT == 0); }
/// Vectors c, zero past the end of D. That is decided here, because it waits for what was fetched; no branch, for converged subgroups.
fn stageFour(t: u32, c: u32, f: Four) {
  let h = 4 * c / HALF_D; let i = t / 16 * STEP_D + c % (HALF_D / 4);
  let none = vec4<f16>(); let is = c < p.d / 4;
  right[h][i] = select(none, f[0], is); right[2 + h][i] = select(none, f[1], is);
  right[4 + h][i] = select(none, f[2], is); right[6 + h][i] = select(none, f[3], is);
}
fn stage(t: u32, f: Eight) { stageFour(t, t % 16, f.a); if (MAX_D > 64) { stageFour(t, t % 16 + 16, f.b); } }
/// Stages the left items where right ones will be, for loadLeft: a subgroup keeps its 16 as operands.
fn stageLeft(at: Place, n: u32, t: u32) { workgroupBarrier(); stage(t, fetch(at, n, at.first, t, KEYS_LEFT != 0)); workgroupBarrier(); }
/// Of a subgroup's left items, 16 of D from d on; modulo MAX_D, for operands that only a larger MAX_D needs.
fn loadLeft(strip: u32, d: u32) -> Left {
  let e = d % MAX_D;
  return subgroupMatrixLoad<Left, row_major>(&right[strip * 2 + e / HALF_D], e % HALF_D / 4, STEP_D);
}
fn loadWeights(strip: u32, k: u32) -> Left { return subgroupMatrixLoad<Left, row_major>(&weightsF16[strip], k / 4, STEP); }
// addItem and addItems multiply 16 and 64 of D, from d on, of left items by a strip of right ones; addValues multiplies weights of
// 16 right items, from k on, by columns c of a half of D.
fn addItem(a: Left, strip: u32, d: u32, sum: Sum) -> Sum {
  let b = subgroupMatrixLoad<Right, col_major>(&right[strip * 2 + d / HALF_D], d % HALF_D / 4, STEP_D);
  return subgroupMatrixMultiplyAccumulate(a, b, sum);
}
fn addItems(a0: Left, a1: Left, a2: Left, a3: Left, strip: u32, d: u32, sum: Sum) -> Sum {
  let first = addItem(a1, strip, d + 16, addItem(a0, strip, d, sum));
  return addItem(a3, strip, d + 48, addItem(a2, strip, d + 32, first));
}
fn addValues(a: Left, half: u32, k: u32, c: u32, sum: Sum) -> Sum {
  let b = subgroupMatrixLoad<Right, row_major>(&right[k / 16 * 2 + half], c / 4, STEP_D);
  return subgroupMatrixMultiplyAccumulate(a, b, sum);
}
// `u` is the part of a subgroup: its strip of 16 left items, and its half of the right items, or of D.
fn storeResults(u: vec2<u32>, c0: Sum, c1: Sum) {
  subgroupMatrixStore<row_major>(&results[u.x + 4 * u.y], 0, c0, STEP_Y);
  subgroupMatrixStore<row_major>(&results[u.x + 4 * u.y], 4, c1, STEP_Y);
}
fn shareResults(u: vec2<u32>, c0: Sum, c1: Sum) { workgroupBarrier(); storeResults(u, c0, c1); workgroupBarrier(); }
fn loadResult(u: vec2<u32>, c: u32) -> Sum { return subgroupMatrixLoad<Sum, row_major>(&results[u.x + 4 * u.y], c / 4, STEP_Y); }
/// Where vector g of 16 of the results of left item j lies, eight per half: strip and index.
fn resultAt(j: u32, g: u32) -> vec2<u32> { return vec2(j / 16 + g / 8 * 4, j % 16 * STEP_Y + g % 8); }
fn result(j: u32, g: u32) -> vec4<f32> { let at = resultAt(j, g); return results[at.x][at.y]; }
/// Moves two sums to `results`, where each thread multiplies its part of a row by `by`; loadResult reads them back.
fn rescale(t: u32, u: vec2<u32>, c0: Sum, c1: Sum, by: f32) {
  shareResults(u, c0, c1);
  for (var g = t % 4; g < 16; g += 4) { let at = resultAt(t / 4, g); results[at.x][at.y] *= by; }
  workgroupBarrier();
}
fn exp2Biased(e: i32) -> f32 { return bitcast<f32>(u32(clamp(e, 0, 254)) << 23); } // 2^(e - 127), or 0 for e <= 0
fn exp2Biased4(e: vec4<i32>) -> vec4<f32> { return bitcast<vec4<f32>>(vec4<u32>(clamp(e, vec4(0), vec4(254))) << vec4(23u)); }
/// Scale exponent (biased by 127) of an item for matmul n, and both: of k and v, or of q and dy.
fn exponent(i: u32, n: u32, ofKeys: bool) -> f16 {
  let end = i * (p.d / 4 + 1) + p.d / 4;
  if (ofKeys) { if (n == 0) { return k[end].x; } return v[end].x; }
  if (n == 0) { return q[end].x; } return dy[end].x;
}
fn exponents(i: u32, ofKeys: bool) -> vec2<i32> { return vec2(i32(exponent(i, 0, ofKeys)), i32(exponent(i, 1, ofKeys))); }
/// Componentwise maximum over the workgroup. Uses `results`.
fn workgroupMax(t: u32, mine: vec4<i32>) -> vec4<i32> {
  let here = subgroupMax(mine);
  if (t % 32 == 0) { results[t / 32][0] = vec4<f32>(here); }
  workgroupBarrier();
  return vec4<i32>(subgroupMax(results[t % 8][0]));
}
fn maxExponentsIn(at: Place, t: u32, range: vec2<u32>, ofKeys: bool) -> vec2<i32> {
  var e = vec2<i32>();
  for (var r = range.x + t; r < range.y; r += 256) { e = max(e, exponents(item(at, r, 0, ofKeys), ofKeys)); }
  return e;
}
/// Largest scale exponents of (k, v, q, dy): forward and dq, of the keys in `range`; dk and dv, of all keys and the rows in `range`.
fn maxExponents(at: Place, t: u32, range: vec2<u32>) -> vec4<i32> {
  if (KEYS_LEFT == 0) { return workgroupMax(t, vec4(maxExponentsIn(at, t, range, true), 0, 0)); }
  return workgroupMax(t, vec4(maxExponentsIn(at, t, vec2(0, p.s), true), maxExponentsIn(at, t, range, false)));
}
/// Position of item first + j: past the end one beyond all rows for a key, -1 for a row, so that no pair is visible.
fn position(at: Place, first: u32, j: u32, ofKeys: bool) -> i32 {
  if (ofKeys) { return select(0x7fffffff, i32(first + j), first + j < p.s); }
  return select(-1, min(p.queryOffset + i32(token(first, j)), i32(p.s) - 1), first + j < rows());
}
/// Of the key at a position: index in `mask`; the word of the mask that has its key mask (kind 2) or its segment (3).
fn maskIndex(at: Place, position: i32) -> u32 { return p.firstKey + at.b * p.s + u32(clamp(position, 0, i32(p.s) - 1)); }
fn maskWord(at: Place, position: i32, kind: u32) -> u32 {
  let i = maskIndex(at, position);
  if (p.maskKind == SEGMENTS) { return mask[2 * i + 3 - kind]; }
  if (p.maskKind == KEY_MASK && kind == 2) { return mask[i / 4]; }
  return 3 - kind;
}
/// A position, beyond all rows if it is of a key that the mask's word hides.
fn visiblePosition(at: Place, position: i32, word: u32, ofKeys: bool) -> i32 {
  let own = select(word, (word >> (maskIndex(at, position) % 4 * 8)) & 0xff, p.maskKind == KEY_MASK);
  return select(position, 0x7fffffff, ofKeys && own == 0);
}
/// The left item of a thread.
fn leftOf(at: Place, t: u32, stats: vec4<f32>) -> Item {
  let ofKeys = KEYS_LEFT != 0;
  let i = item(at, at.first, t / 4, ofKeys); let x = position(at, at.first, t / 4, ofKeys);
  let visibility = vec2(visiblePosition(at, x, maskWord(at, x, 2), ofKeys), i32(maskWord(at, x, 3)));
  return Item(i, exponents(i, ofKeys), visibility, stats);
}
/// What thread t stages of right item m + t % 64, by kind t / 64: 0, 1 the scale exponents, 2 the position, 3 the segment.
fn fetchInfo(at: Place, m: u32, t: u32) -> Info {
  let kind = t / 64; let ofKeys = KEYS_LEFT == 0;
  if (kind < 2) { return Info(exponent(item(at, m, t % 64, ofKeys), kind, ofKeys), 0, 0, 0); }
  let x = position(at, m, t % 64, ofKeys);
  return Info(0, x, maskWord(at, x, kind), 0);
}
/// The same in backward: of a query on the right also kinds 4 to 7, lse (two numbers), dy·y and scale, as the bits of f32.
fn fetchInfoStats(at: Place, m: u32, t: u32) -> Info {
  var info = fetchInfo(at, m, t);
  if (KEYS_LEFT != 0) { info.stat = statsIn[p.firstQuery + query(at, m, t % 64)][t / 64]; }
  return info;
}
/// A word of each of the four threads of a left item, or of four right items: neighbours in a subgroup. For thread 0 in their order.
fn shareWords(x: i32) -> vec4<i32> {
  let y = subgroupShuffleXor(x, 1);
  return vec4(x, y, subgroupShuffleXor(x, 2), subgroupShuffleXor(y, 2));
}
fn share(x: f32) -> vec4<f32> { return bitcast<vec4<f32>>(shareWords(bitcast<i32>(x))); }
fn stageInfo(at: Place, t: u32, info: Info) {
  let word = select(i32(info.word), visiblePosition(at, info.position, info.word, KEYS_LEFT == 0), t / 64 == 2);
  let known = shareWords(select(word, i32(info.exponent), t / 64 < 2));
  if (t % 4 == 0) { rightInfo[t / 4] = known; }
  if (KEYS_LEFT != 0) { let stats = shareWords(bitcast<i32>(info.stat)); if (t % 4 == 0) { rightInfo[64 + t / 4] = stats; } }
  if (t == 0) { atomicStore(&isSeen, 0); atomicStore(&hasGrown, 0); }
}
/// For each of four right items, whether the key is visible to the row, one of which is the left item.
fn isVisible(left: Item, g: u32) -> vec4<bool> {
  let at = rightInfo[32 + g];
  let same = rightInfo[48 + g] == vec4(left.visibility.y);
  if (KEYS_LEFT != 0) { return (vec4(left.visibility.x) <= at) & same; } return (at <= vec4(left.visibility.x)) & same;
}
/// Whether any pair of the tile is visible. Only segments can hide a whole tile of the loops below.
fn anyVisible(left: Item, t: u32) -> bool {
  if (p.maskKind != SEGMENTS) { return true; }
  let g = t % 4;
  if (any(isVisible(left, g) | isVisible(left, g + 4) | isVisible(left, g + 8) | isVisible(left, g + 12))) { atomicStore(&isSeen, 1); }
  return workgroupUniformLoad(&isSeen) != 0;
}
/// Four results (a thread has vectors t % 4 + 0, 4, 8, 12) as scores: with their scales applied, MASKED where not visible.
fn score(left: Item, t: u32, n: u32) -> vec4<f32> {
  let g = t % 4 + n;
  let w = result(t / 4, g) * exp2Biased4(rightInfo[g] + vec4(left.exponents.x - 127)) * p.scale;
  return select(vec4(MASKED), w, isVisible(left, g));
}
fn scores(left: Item, t: u32) -> mat4x4<f32> { return mat4x4(score(left, t, 0), score(left, t, 4), score(left, t, 8), score(left, t, 12)); }
/// Statistic n of four queries: right items, or four times the left item.
fn statOf(left: Item, n: u32, g: u32) -> vec4<f32> {
  if (KEYS_LEFT != 0) { return bitcast<vec4<f32>>(rightInfo[(4 + n) * 16 + g]); } return vec4(left.stats[n]);
}
fn weight(left: Item, w: vec4<f32>, g: u32) -> vec4<f32> {
  let x = exp(max(w - statOf(left, 0, g), vec4(-100.0)) - statOf(left, 1, g));
  return select(vec4<f32>(), x, w > vec4(MASKED));
}
fn weights(left: Item, t: u32, w: mat4x4<f32>) -> mat4x4<f32> {
  return mat4x4(weight(left, w[0], t % 4), weight(left, w[1], t % 4 + 4), weight(left, w[2], t % 4 + 8), weight(left, w[3], t % 4 + 12));
}
/// dy·v - dy·y of four scores: weights times it are gradients without `scale`. Times 2^-(dsExponent - 127), which keeps them in f16.
fn slope(left: Item, t: u32, n: u32, dsExponent: i32) -> vec4<f32> {
  let g = t % 4 + n;
  let x = result(t / 4, g) * exp2Biased4(rightInfo[16 + g] + vec4(left.exponents.y - 127));
  let counts = statOf(left, 3, g) != vec4<f32>();
  return select(vec4<f32>(), (x - statOf(left, 2, g)) * exp2Biased(254 - dsExponent), counts);
}
fn slopes(left: Item, t: u32, e: i32) -> mat4x4<f32> { return mat4x4(slope(left, t, 0, e), slope(left, t, 4, e), slope(left, t, 8, e), slope(left, t, 12, e)); }
fn products(w: mat4x4<f32>, x: mat4x4<f32>) -> mat4x4<f32> { return mat4x4(w[0] * x[0], w[1] * x[1], w[2] * x[2], w[3] * x[3]); }
/// Four weights in f16, times 2^(e - 127): the scales of the values that they will multiply.
fn scaledF16(w: vec4<f32>, e: vec4<i32>) -> vec4<f16> { return vec4<f16>(clamp(w * exp2Biased4(e), vec4(-65504.0), vec4(65504.0))); }
/// Stores weights to `weightsF16`, times the scales of their values (kind 0: k or q, 1: v or dy) relative to the largest.
fn stageWeights(t: u32, w: mat4x4<f32>, kind: u32, maxExponent: i32) {
  let n = t / 64; let i = t / 4 % 16 * STEP + t % 4;
  let j = kind * 16 + t % 4; let by = vec4(127 - maxExponent);
  weightsF16[n][i] = scaledF16(w[0], rightInfo[j] + by); weightsF16[n][i + 4] = scaledF16(w[1], rightInfo[j + 4] + by);
  weightsF16[n][i + 8] = scaledF16(w[2], rightInfo[j + 8] + by); weightsF16[n][i + 12] = scaledF16(w[3], rightInfo[j + 12] + by);
}
/// Writes two sums, which are columns from vector c on of each half of 64 left items, to `out` or (`second`) to `dk`, times by.x · by.y.
fn storeSums(at: Place, left: Item, t: u32, u: vec2<u32>, c0: Sum, c1: Sum, c: u32, by: vec2<f32>, second: bool) {
  shareResults(u, c0, c1);
  if (at.first + t / 4 >= select(rows(), p.s, KEYS_LEFT != 0)) { return; }
  for (var g = t % 4; g < 16; g += 4) {
    let column = g / 8 * HALF_D / 4 + g % 8 + c;
    if (column >= p.d / 4) { continue; }
    let x = result(t / 4, g) * by.x * by.y; let to = p.d / 4 * (at.split * p.b * p.s * p.g + left.index) + column;
    if (second) { dk[to] = dk_v(x); } else { out[to] = out_v(x); }
  }
}
fn max4(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
/// Updates a row by sixteen more scores of each of its threads; sets `hasGrown` if its sums have to be rescaled.
fn updateMax(row: Softmax, w: mat4x4<f32>) -> Softmax {
  let here = max4(share(max4(max(max(w[0], w[1]), max(w[2], w[3])))));
  let shift = select(row.shift, here, here > row.shift + GROWTH);
  if (shift > row.shift && row.shift > MASKED) { atomicStore(&hasGrown, 1); }
  return Softmax(max(row.maxScore, here), shift, exp(max(row.shift - shift, -100.0)), row.sum);
}
/// First and end of the right side: keys visible to any row of the tile, or this split of the rows to which its keys are visible.
fn rangeOf(at: Place) -> vec2<u32> {
  if (KEYS_LEFT == 0) {
    let last = min(at.first + 63, rows() - 1) / heads();
    return vec2(0, u32(clamp(i32(last) + p.queryOffset + 1, 0, i32(p.s))));
  }
  let start = min(u32(max(i32(at.first) - p.queryOffset, 0)), p.t) * heads(); let tiles = (rows() - start + 63) / 64;
  return min(start + vec2(tiles * at.split, tiles * (at.split + 1)) / p.splits * 64, vec2(rows()));
}
@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
           @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let at = placeOf(wg, nwg, rows(), 1);
  if (at.b >= p.b) { return; }
  let t = 32 * subgroup + lane; let u = vec2(subgroup % 4, subgroup / 4);
  var left = leftOf(at, t, vec4<f32>());
  let end = rangeOf(at).y;
  var f = fetchRight(at, 0, 0, t); var info = fetchInfo(at, 0, t);
  let valueExponent = maxExponents(at, t, vec2(0, end)).y;
  stageLeft(at, 0, t);
  let a0 = loadLeft(u.x, 0); let a1 = loadLeft(u.x, 16); let a2 = loadLeft(u.x, 32); let a3 = loadLeft(u.x, 48);
  let a4 = loadLeft(u.x, 64); let a5 = loadLeft(u.x, 80); let a6 = loadLeft(u.x, 96); let a7 = loadLeft(u.x, 112);
  var o0 = Sum(); var o1 = Sum(); var o2 = Sum(); var o3 = Sum();
  var row = Softmax(MASKED, MASKED, 1, 0);
  for (var m = 0u; m < end; m += 64) {
    workgroupBarrier(); stage(t, f); stageInfo(at, t, info); workgroupBarrier();
    if (!anyVisible(left, t)) { f = fetchRight(at, 0, m + 64, t); info = fetchInfo(at, m + 64, t); continue; }
    f = fetchRight(at, 1, m, t);
    var s0 = addItems(a0, a1, a2, a3, 2 * u.y, 0, Sum()); var s1 = addItems(a0, a1, a2, a3, 2 * u.y + 1, 0, Sum());
    if (MAX_D > 64) { s0 = addItems(a4, a5, a6, a7, 2 * u.y, 64, s0); s1 = addItems(a4, a5, a6, a7, 2 * u.y + 1, 64, s1); }
    storeResults(u, s0, s1); workgroupBarrier();
    var w = scores(left, t);
    row = updateMax(row, w); left.stats.x = row.shift;
    w = weights(left, t, w);
    row.sum = row.sum * row.factor + dot(w[0] + w[1] + w[2] + w[3], vec4(1.0));
    stageWeights(t, w, 1, valueExponent); stage(t, f);
    f = fetchRight(at, 0, m + 64, t); info = fetchInfo(at, m + 64, t);
    if (workgroupUniformLoad(&hasGrown) != 0) {
      rescale(t, u, o0, o1, row.factor);
      o0 = loadResult(u, 0); o1 = loadResult(u, 16);
      if (MAX_D > 64) { rescale(t, u, o2, o3, row.factor); o2 = loadResult(u, 0); o3 = loadResult(u, 16); }
    }
    for (var i = 0u; i < 64; i += 16) {
      let a = loadWeights(u.x, i); o0 = addValues(a, u.y, i, 0, o0); o1 = addValues(a, u.y, i, 16, o1);
      if (MAX_D > 64) { o2 = addValues(a, u.y, i, 32, o2); o3 = addValues(a, u.y, i, 48, o3); }
    }
  }
  let sum = dot(share(row.sum), vec4(1.0));
  if (t % 4 == 0 && at.first + t / 4 < rows()) {
    lse[p.firstQuery + left.index] = vec2(row.maxScore, select(0, log(sum) + row.shift - row.maxScore, sum > 0));
  }
  let by = vec2(select(0, 1 / sum, sum > 0), exp2Biased(valueExponent));
  storeSums(at, left, t, u, o0, o1, 0, by, false);
  if (MAX_D > 64) { storeSums(at, left, t, u, o2, o3, 8, by, false); }
}
@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
            @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
  let at = placeOf(wg, nwg, select(rows(), p.s, KEYS_LEFT != 0), p.splits);
  if (at.b >= p.b) { return; }
  let t = 32 * subgroup + lane; let u = vec2(subgroup % 4, subgroup / 4);
  let left = leftOf(at, t, statsIn[p.firstQuery + select(item(at, at.first, t / 4, KEYS_LEFT != 0), 0, KEYS_LEFT != 0)]);
  let range = rangeOf(at);
  var f = fetchRight(at, FIRST, range.x, t); var info = fetchInfoStats(at, range.x, t);
  let all = maxExponents(at, t, range);
  let dsExponent = all.y + select(left.exponents.y, all.w, KEYS_LEFT != 0) - 127 + BOUND;
  let valueExponent = select(all.x, all.z, KEYS_LEFT != 0); // largest scale exponent of what ds multiplies: k, or q
  stageLeft(at, FIRST, t);
  let a0 = loadLeft(u.x, 0); let a1 = loadLeft(u.x, 16); let a2 = loadLeft(u.x, 32); let a3 = loadLeft(u.x, 48);
  let a4 = loadLeft(u.x, 64); let a5 = loadLeft(u.x, 80); let a6 = loadLeft(u.x, 96); let a7 = loadLeft(u.x, 112);
  stageLeft(at, 1 - FIRST, t);
  let b0 = loadLeft(u.x, 0); let b1 = loadLeft(u.x, 16); let b2 = loadLeft(u.x, 32); let b3 = loadLeft(u.x, 48);
  let b4 = loadLeft(u.x, 64); let b5 = loadLeft(u.x, 80); let b6 = loadLeft(u.x, 96); let b7 = loadLeft(u.x, 112);
  var o0 = Sum(); var o1 = Sum(); var o2 = Sum(); var o3 = Sum();
  var v0 = Sum(); var v1 = Sum(); var v2 = Sum(); var v3 = Sum();
  for (var m = range.x; m < range.y; m += 64) {
    workgroupBarrier(); stage(t, f); stageInfo(at, t, info); workgroupBarrier();
    if (!anyVisible(left, t)) { f = fetchRight(at, FIRST, m + 64, t); info = fetchInfoStats(at, m + 64, t); continue; }
    f = fetchRight(at, 1 - FIRST, m, t);
    var s0 = addItems(a0, a1, a2, a3, 2 * u.y, 0, Sum()); var s1 = addItems(a0, a1, a2, a3, 2 * u.y + 1, 0, Sum());
    if (MAX_D > 64) { s0 = addItems(a4, a5, a6, a7, 2 * u.y, 64, s0); s1 = addItems(a4, a5, a6, a7, 2 * u.y + 1, 64, s1); }
    storeResults(u, s0, s1); workgroupBarrier();
    var w: mat4x4<f32>; var x: mat4x4<f32>;
    if (KEYS_LEFT != 0) { w = weights(left, t, scores(left, t)); stageWeights(t, w, 1, all.w); } else { x = slopes(left, t, dsExponent); }
    stage(t, f);
    f = fetchRight(at, FIRST, m + 64 * FIRST, t); // dk and dv: q again; dq: v of the next tile
    workgroupBarrier();
    s0 = addItems(b0, b1, b2, b3, 2 * u.y, 0, Sum()); s1 = addItems(b0, b1, b2, b3, 2 * u.y + 1, 0, Sum());
    if (MAX_D > 64) { s0 = addItems(b4, b5, b6, b7, 2 * u.y, 64, s0); s1 = addItems(b4, b5, b6, b7, 2 * u.y + 1, 64, s1); }
    storeResults(u, s0, s1);
    if (KEYS_LEFT != 0) {
      for (var i = 0u; i < 64; i += 16) {
        let a = loadWeights(u.x, i); v0 = addValues(a, u.y, i, 0, v0); v1 = addValues(a, u.y, i, 16, v1);
        if (MAX_D > 64) { v2 = addValues(a, u.y, i, 32, v2); v3 = addValues(a, u.y, i, 48, v3); }
      }
    }
    workgroupBarrier();
    if (KEYS_LEFT != 0) { x = slopes(left, t, dsExponent); stage(t, f); f = fetchRight(at, FIRST, m + 64, t); }
    else { w = weights(left, t, scores(left, t)); }
    stageWeights(t, products(w, x), 0, valueExponent);
    info = fetchInfoStats(at, m + 64, t);
    workgroupBarrier();
    for (var i = 0u; i < 64; i += 16) {
      let a = loadWeights(u.x, i); o0 = addValues(a, u.y, i, 0, o0); o1 = addValues(a, u.y, i, 16, o1);
      if (MAX_D > 64) { o2 = addValues(a, u.y, i, 32, o2); o3 = addValues(a, u.y, i, 48, o3); }
    }
  }
  let by = vec2(p.scale * exp2Biased(dsExponent), exp2Biased(valueExponent));
  storeSums(at, left, t, u, o0, o1, 0, by, KEYS_LEFT != 0);
  if (MAX_D > 64) { storeSums(at, left, t, u, o2, o3, 8, by, KEYS_LEFT != 0); }
  if (KEYS_LEFT == 0) { return; }
  storeSums(at, left, t, u, v0, v1, 0, vec2(1, exp2Biased(all.w)), false);
  if (MAX_D > 64) { storeSums(at, left, t, u, v2, v3, 8, vec2(1, exp2Biased(all.w)), false); }
}
