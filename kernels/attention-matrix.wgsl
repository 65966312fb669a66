// attention-tile.wgsl's mathematics on subgroup matrices (tensor cores on NVIDIA), where D is a multiple of 4 from 16 to 128
//   in q k v dy: f16 rows with scale exponents [..,D + 4] (f16-rows.wgsl); mask statsIn as in attention-tile
//   out out: y (with lse), dq, or dv (with dk); with splits > 1, dk and dv are partial results [splits,B,S,G,D] to be added
//   grid: one workgroup of eight subgroups of 32 per 64 rows of one key head (backward_kv: per 64 keys and split of the rows)
//   why: the tile of attention-block.wgsl, 64 x 64, whose left side (rows, or keys in backward_kv) has the sums. Every matmul
//   is 64 x 64 over 64, and a subgroup computes 16 x 32 of it. Scores pass through workgroup memory, where a thread takes
//   sixteen of one left item, and return as f16 weights. A subgroup matrix has an opaque layout, so sums cannot be rescaled in
//   place: the `shift` of weights changes only when a row exceeds it by GROWTH, and then all sums pass through that memory.
//   numerics: products of f16 values are exact and sums are f32. q, k, v, dy, weights p and score gradients ds are rounded to
//   f16, 2^-11 of each. The scales of items that a sum runs over are moved into its weights, relative to the largest scale;
//   p below 2^-14 then has an error of 2^-25, and ds below 2^-29 of its bound one of 2^-40 of the bound. y, lse, dy·y are f32.
//   source: Dao 2023 (FlashAttention-2), algorithms 1 and 2
diagnostic(off, chromium.subgroup_matrix_uniformity);
enable f16, subgroups, chromium_experimental_subgroup_matrix;
requires immediate_address_space;

const MAX_D: u32 = 64; // D at most: 64 or 128
const EXTRA_D: u32 = MAX_D - 64; // columns beyond the 64 of one matmul
const KEYS_LEFT: u32 = 0; // 1 in backward_kv
const MASKED = -3.0e38; // finite, because WGSL may assume there are no infinities
const KEY_MASK: u32 = 1; const SEGMENTS: u32 = 2; // mask is bytes, 0 for padding, or pairs (segment, key mask)
const GROWTH = 5.5; // weights are at most e^5.5 = 245
const BOUND: i32 = 23; // |dy·v - dy·y| <= 2 D · 2^15 · 2^15 times both rows' scales; dividing by 2^23 brings that below 2^15
// Vectors from row to row of 64 and 16 f16 values and of 32 f32 results, with padding, so that 16 rows lie on different banks.
const STEP: u32 = 18;
const STEP_D: u32 = 6;
const STEP_Y: u32 = 9;

alias out_v = vec4<f32>;
alias dk_v = vec4<f32>;
alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;
alias Four = mat4x4<f16>; // one vector of each of four items
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

// Strips, so that a subgroup matrix begins at a constant of one: Dawn checks the bounds of each, which folds away there.
var<workgroup> blockA: array<array<vec4<f16>, 16 * STEP>, 4>; // per 16 left items [16][64 of D, or of right items]
var<workgroup> blockB: array<array<vec4<f16>, 64 * STEP_D>, 4>; // per 16 right items [16][64 of D], or per 16 of D [64 right][16]
var<workgroup> results: array<array<vec4<f32>, 16 * STEP_Y>, 8>; // per subgroup [16 left][32]
var<workgroup> rightInfo: array<vec4<i32>, 128>; // [kind][16 groups of four right items]; for the kinds see rightInfoOf and stageRightStats
var<workgroup> flag: atomic<u32>; // set if any thread says yes

/// The tile of a workgroup: batch, key head, first row or key, and split of the other side.
struct Place { b: u32, g: u32, first: u32, split: u32 }
/// Left item t / 4 of thread t: scale exponents of (q, dy) or (k, v), visibility (position, segment), stats (lse, dy·y, scale).
struct Item { index: u32, exponents: vec2<i32>, visibility: vec2<i32>, stats: vec4<f32> }
/// Running softmax of a row: maximum score, shift of its weights, factor for the sums so far, and sum of weights.
struct Softmax { maxScore: f32, shift: f32, factor: f32, sum: f32 }
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
fn item(at: Place, first: u32, j: u32, ofKeys: bool) -> u32 { if (ofKeys) { return key(at, first + j); } return query(at, first, j); }
/// Where the four items that a thread copies start, in vectors: items first + t / 16 + 0, 16, 32, 48.
fn copyStarts(at: Place, first: u32, t: u32, ofKeys: bool) -> vec4<u32> {
  let j = t / 16;
  return (p.d / 4 + 1) * vec4(item(at, first, j, ofKeys), item(at, first, j + 16, ofKeys),
                              item(at, first, j + 32, ofKeys), item(at, first, j + 48, ofKeys));
}
/// Vector c of four items for matmul n: scores (0) or dy·v (1). Zero past the end of D; no branch, to keep subgroups converged.
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
// Stores four vectors at i and at the rows 16, 32 and 48 below.
fn stageItems(t: u32, f: Four, g: Four) {
  let i = t / 16 * STEP + t % 16;
  workgroupBarrier();
  blockA[0][i] = f[0]; blockA[1][i] = f[1]; blockA[2][i] = f[2]; blockA[3][i] = f[3];
  blockB[0][i] = g[0]; blockB[1][i] = g[1]; blockB[2][i] = g[2]; blockB[3][i] = g[3];
  workgroupBarrier();
}
fn stageValues(t: u32, f: Four) {
  let n = t % 16 / 4;
  let i = t / 16 * STEP_D + t % 4;
  blockB[n][i] = f[0]; blockB[n][i + 16 * STEP_D] = f[1]; blockB[n][i + 32 * STEP_D] = f[2]; blockB[n][i + 48 * STEP_D] = f[3];
}
// Subgroup n computes strip n % 4 of the left items by strips n / 4 · 2 and the next of the right items or D: `u` is the first of both.
fn stripsOf(subgroup: u32) -> vec2<u32> { return vec2(subgroup % 4, subgroup / 4 * 2); }
fn loadA(u: vec2<u32>, k: u32) -> Left { return subgroupMatrixLoad<Left, row_major>(&blockA[u.x], k / 4, STEP); }
// addItems sums over 16 of D (scores or dy·v), addD over 16 right items (weights times values).
fn addItems(a: Left, strip: u32, k: u32, c: Sum) -> Sum {
  return subgroupMatrixMultiplyAccumulate(a, subgroupMatrixLoad<Right, col_major>(&blockB[strip], k / 4, STEP), c);
}
fn addD(a: Left, strip: u32, k: u32, c: Sum) -> Sum {
  return subgroupMatrixMultiplyAccumulate(a, subgroupMatrixLoad<Right, row_major>(&blockB[strip], k * STEP_D, STEP_D), c);
}
fn shareResults(u: vec2<u32>, c0: Sum, c1: Sum) { workgroupBarrier(); storeResults(u, c0, c1); workgroupBarrier(); }
fn storeResults(u: vec2<u32>, c0: Sum, c1: Sum) {
  subgroupMatrixStore<row_major>(&results[u.x + 2 * u.y], 0, c0, STEP_Y);
  subgroupMatrixStore<row_major>(&results[u.x + 2 * u.y], 4, c1, STEP_Y);
}
fn loadResult0(u: vec2<u32>) -> Sum { return subgroupMatrixLoad<Sum, row_major>(&results[u.x + 2 * u.y], 0, STEP_Y); }
fn loadResult1(u: vec2<u32>) -> Sum { return subgroupMatrixLoad<Sum, row_major>(&results[u.x + 2 * u.y], 4, STEP_Y); }
/// Where vector g of 16 of the results of left item j lies: strip and index.
fn resultAt(j: u32, g: u32) -> vec2<u32> { return vec2(j / 16 + g / 8 * 4, j % 16 * STEP_Y + g % 8); }
fn result(j: u32, g: u32) -> vec4<f32> { let at = resultAt(j, g); return results[at.x][at.y]; }
fn setResult(j: u32, g: u32, value: vec4<f32>) { let at = resultAt(j, g); results[at.x][at.y] = value; }
/// Moves two sums to `results`, where each thread multiplies its part of a row by `by`; loadResult0 and 1 read them back.
fn rescale(t: u32, u: vec2<u32>, c0: Sum, c1: Sum, by: f32) {
  shareResults(u, c0, c1);
  for (var g = t % 4; g < 16; g += 4) { setResult(t / 4, g, result(t / 4, g) * by); }
  workgroupBarrier();
}
/// 2^(e - 127), or 0 for e <= 0.
fn exp2Biased(e: i32) -> f32 { return bitcast<f32>(u32(clamp(e, 0, 254)) << 23); }
fn exp2Biased4(e: vec4<i32>) -> vec4<f32> { return bitcast<vec4<f32>>(vec4<u32>(clamp(e, vec4(0), vec4(254))) << vec4(23u)); }
/// Scale exponents (biased by 127) of an item: of k and v, or of q and dy.
fn exponents(i: u32, ofKeys: bool) -> vec2<i32> {
  let end = i * (p.d / 4 + 1) + p.d / 4;
  if (ofKeys) { return vec2(i32(k[end].x), i32(v[end].x)); } return vec2(i32(q[end].x), i32(dy[end].x));
}
/// Componentwise maximum over the workgroup. Uses `results`.
fn workgroupMax(t: u32, mine: vec4<i32>) -> vec4<i32> {
  let j = t / 16; let g = t % 16;
  setResult(j, g, vec4<f32>(mine));
  for (var step = 128u; step > 0; step /= 2) {
    workgroupBarrier();
    if (t < step) { setResult(j, g, max(result(j, g), result((t + step) / 16, (t + step) % 16))); }
  }
  workgroupBarrier();
  return vec4<i32>(result(0, 0));
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
/// Position of a key, or one beyond all rows if the key is masked or past the end.
fn keyPosition(at: Place, s: u32) -> i32 {
  let i = p.firstKey + at.b * p.s + min(s, p.s - 1);
  var isUnmasked = s < p.s;
  if (p.maskKind == KEY_MASK) { isUnmasked = isUnmasked && ((mask[i / 4] >> (i % 4 * 8)) & 0xff) != 0; }
  if (p.maskKind == SEGMENTS) { isUnmasked = isUnmasked && mask[2 * i + 1] != 0; }
  return select(0x7fffffff, i32(s), isUnmasked);
}
fn segment(at: Place, position: i32) -> i32 {
  if (p.maskKind != SEGMENTS) { return 0; }
  return i32(mask[2 * (p.firstKey + at.b * p.s + u32(clamp(position, 0, i32(p.s) - 1)))]);
}
/// Position and segment of item first + j; a row past the end has position -1, so that no key is visible to it.
fn visibility(at: Place, first: u32, j: u32, ofKeys: bool) -> vec2<i32> {
  if (ofKeys) { return vec2(keyPosition(at, first + j), segment(at, i32(first + j))); }
  let position = select(-1, min(p.queryOffset + i32(token(first, j)), i32(p.s) - 1), first + j < rows());
  return vec2(position, segment(at, position));
}
/// The left item of a thread.
fn leftOf(at: Place, t: u32, stats: vec4<f32>) -> Item {
  let i = item(at, at.first, t / 4, KEYS_LEFT != 0);
  return Item(i, exponents(i, KEYS_LEFT != 0), visibility(at, at.first, t / 4, KEYS_LEFT != 0), stats);
}
/// What is staged of right item m + j, by kind: 0, 1 the scale exponents, 2 the position, 3 the segment.
fn rightInfoOf(at: Place, m: u32, j: u32, kind: u32) -> i32 {
  if (kind > 1) { return visibility(at, m, j, KEYS_LEFT == 0)[kind - 2]; } return exponents(item(at, m, j, KEYS_LEFT == 0), KEYS_LEFT == 0)[kind];
}
fn stageRightInfo(at: Place, m: u32, t: u32) {
  let j = t % 16 * 4;
  let n = t / 16;
  if (n < 4) { rightInfo[t] = vec4(rightInfoOf(at, m, j, n), rightInfoOf(at, m, j + 1, n), rightInfoOf(at, m, j + 2, n), rightInfoOf(at, m, j + 3, n)); }
  if (t == 0) { atomicStore(&flag, 0); }
}
/// For queries on the right: kinds 4 to 7 are lse (two numbers), dy·y and scale, as the bits of f32.
fn stageRightStats(at: Place, m: u32, t: u32) {
  if (KEYS_LEFT == 0 || t / 64 != 1) { return; }
  let j = t % 16 * 4;
  let n = t % 64 / 16;
  let i = p.firstQuery + vec4(query(at, m, j), query(at, m, j + 1), query(at, m, j + 2), query(at, m, j + 3));
  rightInfo[t] = bitcast<vec4<i32>>(vec4(statsIn[i.x][n], statsIn[i.y][n], statsIn[i.z][n], statsIn[i.w][n]));
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
  workgroupBarrier();
  if (any(isVisible(left, t % 4) | isVisible(left, t % 4 + 4) | isVisible(left, t % 4 + 8) | isVisible(left, t % 4 + 12))) { atomicStore(&flag, 1); }
  return workgroupUniformLoad(&flag) != 0;
}
/// Four results as scores: with their scales applied, MASKED where not visible.
fn score(left: Item, t: u32, g: u32) -> vec4<f32> {
  let w = result(t / 4, g) * exp2Biased4(rightInfo[g] + vec4(left.exponents.x - 127)) * p.scale;
  return select(vec4(MASKED), w, isVisible(left, g));
}
fn scores(left: Item, t: u32) -> mat4x4<f32> {
  let g = t % 4;
  return mat4x4(score(left, t, g), score(left, t, g + 4), score(left, t, g + 8), score(left, t, g + 12));
}
/// Statistic n of four queries: right items, or four times the left item.
fn statOf(left: Item, n: u32, g: u32) -> vec4<f32> {
  if (KEYS_LEFT != 0) { return bitcast<vec4<f32>>(rightInfo[(4 + n) * 16 + g]); } return vec4(left.stats[n]);
}
fn weight(left: Item, w: vec4<f32>, g: u32) -> vec4<f32> {
  let x = exp(max(w - statOf(left, 0, g), vec4(-100.0)) - statOf(left, 1, g));
  return select(vec4<f32>(), x, w > vec4(MASKED));
}
fn weights(left: Item, t: u32, w: mat4x4<f32>) -> mat4x4<f32> {
  let g = t % 4;
  return mat4x4(weight(left, w[0], g), weight(left, w[1], g + 4), weight(left, w[2], g + 8), weight(left, w[3], g + 12));
}
/// Gradients of four scores without `scale`, times 2^-(dsExponent - 127), which keeps them within f16.
fn gradient(left: Item, w: vec4<f32>, t: u32, g: u32, dsExponent: i32) -> vec4<f32> {
  let x = result(t / 4, g) * exp2Biased4(rightInfo[16 + g] + vec4(left.exponents.y - 127));
  let counts = select(vec4<f32>(), w, statOf(left, 3, g) != vec4<f32>());
  return counts * (x - statOf(left, 2, g)) * exp2Biased(254 - dsExponent);
}
fn gradients(left: Item, t: u32, w: mat4x4<f32>, dsExponent: i32) -> mat4x4<f32> {
  let g = t % 4;
  return mat4x4(gradient(left, w[0], t, g, dsExponent), gradient(left, w[1], t, g + 4, dsExponent),
                gradient(left, w[2], t, g + 8, dsExponent), gradient(left, w[3], t, g + 12, dsExponent));
}
/// Four weights in f16, times 2^(e - 127): the scales of the values that they will multiply.
fn scaledF16(w: vec4<f32>, e: vec4<i32>) -> vec4<f16> { return vec4<f16>(clamp(w * exp2Biased4(e), vec4(-65504.0), vec4(65504.0))); }
/// Stores weights to `blockA`, times the scales of their values (kind 0: k or q, 1: v or dy) relative to the largest.
fn stageWeights(t: u32, w: mat4x4<f32>, kind: u32, maxExponent: i32) {
  let n = t / 64;
  let i = t / 4 % 16 * STEP + t % 4;
  let j = kind * 16 + t % 4;
  let by = vec4(127 - maxExponent);
  blockA[n][i] = scaledF16(w[0], rightInfo[j] + by); blockA[n][i + 4] = scaledF16(w[1], rightInfo[j + 4] + by);
  blockA[n][i + 8] = scaledF16(w[2], rightInfo[j + 8] + by); blockA[n][i + 12] = scaledF16(w[3], rightInfo[j + 12] + by);
}
/// Writes two sums, which are columns from vector c on of 64 left items, to `out` or (`second`) to `dk`, times by.x · by.y.
fn storeSums(at: Place, left: Item, t: u32, u: vec2<u32>, c0: Sum, c1: Sum, c: u32, by: vec2<f32>, second: bool) {
  shareResults(u, c0, c1);
  if (at.first + t / 4 >= select(rows(), p.s, KEYS_LEFT != 0)) { return; }
  let to = p.d / 4 * (at.split * p.b * p.s * p.g + left.index) + c;
  for (var i = t % 4; i < min(16, p.d / 4 - c); i += 4) {
    let x = result(t / 4, i) * by.x * by.y;
    if (second) { dk[to + i] = dk_v(x); } else { out[to + i] = out_v(x); }
  }
}
fn max4(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
/// Exchanges a number between the four threads of a left item, through the thread's own part of `results`.
fn share(t: u32, x: f32) -> vec4<f32> {
  let j = t / 4;
  setResult(j, t % 4, vec4(x));
  workgroupBarrier();
  return vec4(result(j, 0).x, result(j, 1).x, result(j, 2).x, result(j, 3).x);
}
/// Updates a row by sixteen more scores of each of its threads; sets `flag` if its sums have to be rescaled.
fn updateMax(row: Softmax, t: u32, w: mat4x4<f32>) -> Softmax {
  let here = max4(share(t, max4(max(max(w[0], w[1]), max(w[2], w[3])))));
  let shift = select(row.shift, here, here > row.shift + GROWTH);
  if (shift > row.shift && row.shift > MASKED) { atomicStore(&flag, 1); }
  return Softmax(max(row.maxScore, here), shift, exp(max(row.shift - shift, -100.0)), row.sum);
}
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
@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
           @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32) {
  let at = placeOf(wg, nwg, rows(), 1);
  if (at.b >= p.b) { return; }
  let u = stripsOf(subgroup);
  var left = leftOf(at, t, vec4<f32>());
  let starts = copyStarts(at, at.first, t, false);
  let c = t % 16;
  let end = rangeOf(at).y;
  let valueExponent = maxExponents(at, t, vec2(0, end)).y;
  var o0 = Sum(); var o1 = Sum(); var o2 = Sum(); var o3 = Sum();
  var row = Softmax(MASKED, MASKED, 1, 0);
  for (var m = 0u; m < end; m += 64) {
    stageRightInfo(at, m, t);
    if (!anyVisible(left, t)) { continue; }
    let others = copyStarts(at, m, t, true);
    var f = fetchLeft(0, starts, c); var g = fetchRight(0, others, c);
    var s0 = Sum(); var s1 = Sum();
    for (var d = 0u; d < p.d; d += 64) {
      stageItems(t, f, g);
      let next = c + d / 4 + 16;
      if (d + 64 < p.d) { f = fetchLeft(0, starts, next); g = fetchRight(0, others, next); } else { g = fetchRight(1, others, c); }
      for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); s0 = addItems(a, u.y, i, s0); s1 = addItems(a, u.y + 1, i, s1); }
    }
    storeResults(u, s0, s1); if (t == 0) { atomicStore(&flag, 0); }
    workgroupBarrier();
    var w = scores(left, t);
    row = updateMax(row, t, w);
    left.stats.x = row.shift;
    w = weights(left, t, w);
    row.sum = row.sum * row.factor + dot(w[0] + w[1] + w[2] + w[3], vec4(1.0));
    stageWeights(t, w, 1, valueExponent); stageValues(t, g);
    if (workgroupUniformLoad(&flag) != 0) {
      rescale(t, u, o0, o1, row.factor);
      o0 = loadResult0(u); o1 = loadResult1(u);
      if (EXTRA_D > 0) { rescale(t, u, o2, o3, row.factor); o2 = loadResult0(u); o3 = loadResult1(u); }
    }
    g = fetchRight(1, others, c + 16);
    for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); o0 = addD(a, u.y, i, o0); o1 = addD(a, u.y + 1, i, o1); }
    if (EXTRA_D > 0) { workgroupBarrier(); stageValues(t, g); workgroupBarrier(); }
    for (var i = 0u; i < EXTRA_D; i += 16) { let a = loadA(u, i); o2 = addD(a, u.y, i, o2); o3 = addD(a, u.y + 1, i, o3); }
  }
  workgroupBarrier();
  let sum = dot(share(t, row.sum), vec4(1.0));
  if (t % 4 == 0 && at.first + t / 4 < rows()) {
    lse[p.firstQuery + left.index] = vec2(row.maxScore, select(0, log(sum) + row.shift - row.maxScore, sum > 0));
  }
  let by = vec2(select(0, 1 / sum, sum > 0), exp2Biased(valueExponent));
  storeSums(at, left, t, u, o0, o1, 0, by, false);
  if (EXTRA_D > 0) { storeSums(at, left, t, u, o2, o3, 16, by, false); }
}

@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
            @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32) {
  let at = placeOf(wg, nwg, select(rows(), p.s, KEYS_LEFT != 0), p.splits);
  if (at.b >= p.b) { return; }
  let u = stripsOf(subgroup);
  let left = leftOf(at, t, statsIn[p.firstQuery + select(item(at, at.first, t / 4, KEYS_LEFT != 0), 0, KEYS_LEFT != 0)]);
  let starts = copyStarts(at, at.first, t, KEYS_LEFT != 0);
  let c = t % 16;
  let range = rangeOf(at);
  let all = maxExponents(at, t, range);
  let dsExponent = all.y + select(left.exponents.y, all.w, KEYS_LEFT != 0) - 127 + BOUND;
  let valueExponent = select(all.x, all.z, KEYS_LEFT != 0); // largest scale exponent of what ds multiplies: k, or q
  var o0 = Sum(); var o1 = Sum(); var o2 = Sum(); var o3 = Sum();
  var v0 = Sum(); var v1 = Sum(); var v2 = Sum(); var v3 = Sum();
  for (var m = range.x; m < range.y; m += 64) {
    stageRightInfo(at, m, t);
    stageRightStats(at, m, t);
    if (!anyVisible(left, t)) { continue; }
    let others = copyStarts(at, m, t, KEYS_LEFT == 0);
    var f = fetchLeft(0, starts, c); var g = fetchRight(0, others, c);
    var w: mat4x4<f32>; var x: mat4x4<f32>;
    for (var n = 0u; n < 2; n++) {
      var s0 = Sum(); var s1 = Sum();
      for (var d = 0u; d < p.d; d += 64) {
        stageItems(t, f, g);
        let product = n + u32(d + 64 >= p.d); // the matmul that the next load is for
        let next = c + select(0, d / 4 + 16, product == n);
        if (product < 2) { f = fetchLeft(product, starts, next); }
        g = fetchRight(select(product, KEYS_LEFT, product == 2), others, next);
        for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); s0 = addItems(a, u.y, i, s0); s1 = addItems(a, u.y + 1, i, s1); }
      }
      storeResults(u, s0, s1);
      workgroupBarrier();
      if (n == 0) { w = weights(left, t, scores(left, t)); } else { x = gradients(left, t, w, dsExponent); }
    }
    if (KEYS_LEFT != 0) {
      stageWeights(t, w, 1, all.w); stageValues(t, g);
      workgroupBarrier();
      g = fetchRight(1, others, c + 16);
      for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); v0 = addD(a, u.y, i, v0); v1 = addD(a, u.y + 1, i, v1); }
      if (EXTRA_D > 0) { workgroupBarrier(); stageValues(t, g); workgroupBarrier(); }
      for (var i = 0u; i < EXTRA_D; i += 16) { let a = loadA(u, i); v2 = addD(a, u.y, i, v2); v3 = addD(a, u.y + 1, i, v3); }
      g = fetchRight(0, others, c);
      workgroupBarrier();
    }
    stageWeights(t, x, 0, valueExponent); stageValues(t, g);
    workgroupBarrier();
    g = fetchRight(0, others, c + 16);
    for (var i = 0u; i < 64; i += 16) { let a = loadA(u, i); o0 = addD(a, u.y, i, o0); o1 = addD(a, u.y + 1, i, o1); }
    if (EXTRA_D > 0) { workgroupBarrier(); stageValues(t, g); workgroupBarrier(); }
    for (var i = 0u; i < EXTRA_D; i += 16) { let a = loadA(u, i); o2 = addD(a, u.y, i, o2); o3 = addD(a, u.y + 1, i, o3); }
  }
  let by = vec2(p.scale * exp2Biased(dsExponent), exp2Biased(valueExponent));
  storeSums(at, left, t, u, o0, o1, 0, by, KEYS_LEFT != 0);
  if (EXTRA_D > 0) { storeSums(at, left, t, u, o2, o3, 16, by, KEYS_LEFT != 0); }
  if (KEYS_LEFT == 0) { return; }
  storeSums(at, left, t, u, v0, v1, 0, vec2(1, exp2Biased(all.w)), false);
  if (EXTRA_D > 0) { storeSums(at, left, t, u, v2, v3, 16, vec2(1, exp2Biased(all.w)), false); }
}
