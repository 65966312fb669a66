// attention for software drivers, where D is a multiple of 4: mathematics, operands and entry points of attention-tile.wgsl
//   in as there, with q k v dy as textures   out as there
//   grid: one subgroup of 8 lanes per tile of 32 rows (backward_kv: 32 keys) of one key head, four rows per lane
//   why: on such a driver loads cost most, least of all from textures, and shuffles are cheap broadcasts (see
//   matmul-rows.wgsl). A lane keeps four rows as the components of vectors, so maximum, sum and causal rule need no other
//   lane. 16 keys (backward_kv: rows) at a time are loaded, one per lane, and broadcast; a block of 16 is skipped if none is
//   visible to any lane. The outputs are an array indexed by constants up to D = 128, because an array with a variable index
//   is loaded and stored lane by lane, a quarter of the time. Since that is much code to compile, a loop runs it for 8 of the
//   16 keys at a time. tileOf balances the work of cores.
//   numerics: f32; scores are shifted by the running maximum; a row without visible keys gives y = 0 and lse = (MASKED, 0)
//   source: Dao et al. 2022 (FlashAttention), algorithms 1 and 4
requires immediate_address_space;
enable subgroups;
diagnostic(off, subgroup_uniformity); // a ballot makes the whole subgroup skip a block

const MASKED = -3.0e38; // finite, because WGSL may assume there are no infinities
const MAX_D: u32 = 256; // D at most; at least 64
const WIDTH: u32 = 2048; // texels in a row of a texture: TEXTURE_WIDTH of texture-layout.ts
const KEY_MASK: u32 = 1; // mask is bytes, 0 for padding
const SEGMENTS: u32 = 2; // mask is pairs (segment, key mask)

const Q_HALF: bool = false; // q f16: const Q_HALF: bool = true;
const K_HALF: bool = false; // k f16: const K_HALF: bool = true;
const V_HALF: bool = false; // v f16: const V_HALF: bool = true;
alias y_v = vec4<f32>;
const DY_HALF: bool = false; // dy f16: const DY_HALF: bool = true;
alias dq_v = vec4<f32>;
alias dk_v = vec4<f32>;
alias dv_v = vec4<f32>;

struct Params {
  b: u32, t: u32, s: u32, g: u32, h: u32, d: u32, queryOffset: i32, scale: f32, maskKind: u32,
  firstQuery: u32, firstKey: u32, // where the window starts in lse and stats, and in mask: they are bound whole
}
var<immediate> p: Params;

@group(0) @binding(0) var q: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(1) var k: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(2) var v: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(3) var<storage, read> mask: array<u32>; // of keys; p.maskKind gives its layout
@group(0) @binding(4) var<storage, read_write> y: array<y_v>;
@group(0) @binding(5) var<storage, read_write> lse: array<vec2<f32>>;
@group(0) @binding(6) var dy: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(7) var<storage, read> statsIn: array<vec4<f32>>; // (lse, dy·y, scale) of a query
@group(0) @binding(8) var<storage, read_write> dq: array<dq_v>;
@group(0) @binding(9) var<storage, read_write> dk: array<dk_v>;
@group(0) @binding(10) var<storage, read_write> dv: array<dv_v>;

alias Scores16 = array<vec4<f32>, 16>; // [16 broadcast rows or keys][lane's four]
alias Weights8 = array<vec4<f32>, 8>; // [8 broadcast rows or keys][lane's four]
alias Broadcast16 = array<vec4<u32>, 16>; // [16 broadcast rows]
alias Outputs = array<mat4x4<f32>, MAX_D / 4>; // [4 of D][lane's four]
alias Texture = texture_storage_2d<rgba32uint, read>;

/// Coordinates of the texel with vector i of an operand; a texel holds one vec4 of f32 or two of f16.
fn texelOf(i: u32, half: bool) -> vec2<u32> {
  let texel = select(i, i / 2, half);
  return vec2(texel % WIDTH, texel / WIDTH);
}
fn unpack(t: vec4<u32>, i: u32, half: bool) -> vec4<f32> {
  if (!half) { return bitcast<vec4<f32>>(t); }
  let two = select(t.xy, t.zw, (i & 1) != 0);
  return vec4(unpack2x16float(two.x), unpack2x16float(two.y));
}
fn vector(x: Texture, half: bool, i: u32) -> vec4<f32> { return unpack(textureLoad(x, texelOf(i, half)), i, half); }

/// The tile of a subgroup: batch, key head, and first row or key.
struct TilePlace { b: u32, g: u32, first: u32 }

fn heads() -> u32 { return p.h / p.g; }
fn rows() -> u32 { return p.t * heads(); }

/// A core takes a run of consecutive workgroups, and the causal rule gives late tiles more work: taking tiles from both ends in turn balances it.
fn tileOf(wg: vec3<u32>, nwg: vec3<u32>, count: u32) -> TilePlace {
  let i = wg.x + wg.y * nwg.x;
  let tiles = (count + 31) / 32;
  let turn = i % tiles;
  let tile = select(turn / 2, tiles - 1 - turn / 2, turn % 2 != 0);
  return TilePlace(i / tiles / p.g, i / tiles % p.g, tile * 32);
}

/// Index of a row among all queries; past the end, that of the last row.
fn query(at: TilePlace, row: u32) -> u32 {
  let r = min(row, rows() - 1);
  return (at.b * p.t + r / heads()) * p.h + at.g * heads() + r % heads();
}
/// Index of a key among all keys; past the end, that of the last key.
fn key(at: TilePlace, s: u32) -> u32 { return (at.b * p.s + min(s, p.s - 1)) * p.g + at.g; }

fn queries(at: TilePlace, row: vec4<u32>) -> vec4<u32> {
  return vec4(query(at, row.x), query(at, row.y), query(at, row.z), query(at, row.w));
}
fn keys(at: TilePlace, s: vec4<u32>) -> vec4<u32> { return vec4(key(at, s.x), key(at, s.y), key(at, s.z), key(at, s.w)); }

fn unmasked(at: TilePlace, s: u32) -> bool {
  let i = p.firstKey + at.b * p.s + min(s, p.s - 1);
  if (p.maskKind == KEY_MASK) { return s < p.s && ((mask[i / 4] >> (i % 4 * 8)) & 0xff) != 0; }
  if (p.maskKind == SEGMENTS) { return s < p.s && mask[2 * i + 1] != 0; }
  return s < p.s;
}

/// Segment of a position, clamped to 0 .. S - 1: positions outside belong to rows that do not exist.
fn segment(at: TilePlace, position: i32) -> u32 {
  return mask[2 * (p.firstKey + at.b * p.s + u32(clamp(position, 0, i32(p.s) - 1)))];
}
fn segments(at: TilePlace, position: vec4<i32>) -> vec4<u32> {
  if (p.maskKind != SEGMENTS) { return vec4<u32>(); }
  return vec4(segment(at, position.x), segment(at, position.y), segment(at, position.z), segment(at, position.w));
}

/// Broadcasts x0 and x1 of the eight lanes: one vector for each of 16 rows or keys.
fn broadcast16(x0: vec4<u32>, x1: vec4<u32>) -> Broadcast16 {
  return array(
    subgroupShuffle(x0, 0), subgroupShuffle(x0, 1), subgroupShuffle(x0, 2), subgroupShuffle(x0, 3),
    subgroupShuffle(x0, 4), subgroupShuffle(x0, 5), subgroupShuffle(x0, 6), subgroupShuffle(x0, 7),
    subgroupShuffle(x1, 0), subgroupShuffle(x1, 1), subgroupShuffle(x1, 2), subgroupShuffle(x1, 3),
    subgroupShuffle(x1, 4), subgroupShuffle(x1, 5), subgroupShuffle(x1, 6), subgroupShuffle(x1, 7));
}

/// Bit j of component c: key s + j of 16 is visible to the lane's row c, whose position is position[c].
fn visibleKeys(at: TilePlace, position: vec4<i32>, ownSegments: vec4<u32>, s: u32, lane: u32) -> vec4<u32> {
  let causal = clamp(position - i32(s) + 1, vec4(0), vec4(16));
  let isUnmasked = subgroupBallot(unmasked(at, s + lane)).x | (subgroupBallot(unmasked(at, s + 8 + lane)).x << 8);
  var visible = ((vec4(1u) << vec4<u32>(causal)) - 1) & vec4(isUnmasked);
  if (p.maskKind == SEGMENTS) {
    let ids = broadcast16(vec4(segment(at, i32(s + lane))), vec4(segment(at, i32(s + 8 + lane))));
    for (var j = 0u; j < 16; j++) { visible &= ~(vec4<u32>(ownSegments != ids[j]) << vec4(j)); }
  }
  return visible;
}

/// What backward_kv broadcasts of a row: its position, its segment, and whether it exists.
fn rowInfo(at: TilePlace, row: u32) -> vec4<u32> {
  let position = i32(row / heads()) + p.queryOffset;
  return vec4(u32(position), segments(at, vec4(position)).x, u32(row < rows()), 0);
}

/// Bit j of component c: the lane's key s[c] is visible to row `row + j`.
fn visibleRows(at: TilePlace, s: vec4<u32>, isUnmasked: vec4<bool>, ownSegments: vec4<u32>, row: u32, lane: u32) -> vec4<u32> {
  let others = broadcast16(rowInfo(at, row + lane), rowInfo(at, row + 8 + lane));
  var visible = vec4<u32>();
  for (var j = 0u; j < 16; j++) {
    let isVisible = (vec4<i32>(s) <= vec4(i32(others[j].x))) & (ownSegments == vec4(others[j].y)) & vec4(others[j].z != 0);
    visible |= vec4<u32>(isVisible) << vec4(j);
  }
  return select(vec4<u32>(), visible, isUnmasked);
}

fn bit(visible: vec4<u32>, j: u32) -> vec4<bool> { return extractBits(visible, j, 1) != vec4<u32>(); }

/// Whether no lane has anything visible in a block; uniform over the subgroup.
fn isHidden(visible: vec4<u32>) -> bool { return subgroupBallot(any(visible != vec4<u32>())).x == 0; }

/// One past the last key that the causal rule makes visible to any of the 32 rows.
fn keysEnd(at: TilePlace) -> u32 {
  let last = min(at.first + 31, rows() - 1) / heads();
  return u32(clamp(i32(last) + p.queryOffset + 1, 0, i32(p.s)));
}

/// First row to which the causal rule makes any key of the tile visible.
fn rowsStart(at: TilePlace) -> u32 { return u32(max(i32(at.first) - p.queryOffset, 0)) * heads(); }

/// How many of the lane's four rows or keys, which are 8 apart, exist.
fn ownCount(at: TilePlace, count: u32, lane: u32) -> u32 {
  return min(4, (max(count, at.first + lane) - at.first - lane + 7) / 8);
}

fn mad(sum: vec4<f32>, s: vec4<f32>, b: mat4x4<f32>) -> vec4<f32> {
  return sum + s.x * b[0] + s.y * b[1] + s.z * b[2] + s.w * b[3];
}

/// Adds dot products over four of D: of 16 broadcast rows, one per lane in a0 and in a1, with the lane's four rows in b.
fn addProducts(t: ptr<function, Scores16>, a0: vec4<f32>, a1: vec4<f32>, b: mat4x4<f32>) {
  (*t)[0] = mad((*t)[0], subgroupShuffle(a0, 0), b);
  (*t)[1] = mad((*t)[1], subgroupShuffle(a0, 1), b);
  (*t)[2] = mad((*t)[2], subgroupShuffle(a0, 2), b);
  (*t)[3] = mad((*t)[3], subgroupShuffle(a0, 3), b);
  (*t)[4] = mad((*t)[4], subgroupShuffle(a0, 4), b);
  (*t)[5] = mad((*t)[5], subgroupShuffle(a0, 5), b);
  (*t)[6] = mad((*t)[6], subgroupShuffle(a0, 6), b);
  (*t)[7] = mad((*t)[7], subgroupShuffle(a0, 7), b);
  (*t)[8] = mad((*t)[8], subgroupShuffle(a1, 0), b);
  (*t)[9] = mad((*t)[9], subgroupShuffle(a1, 1), b);
  (*t)[10] = mad((*t)[10], subgroupShuffle(a1, 2), b);
  (*t)[11] = mad((*t)[11], subgroupShuffle(a1, 3), b);
  (*t)[12] = mad((*t)[12], subgroupShuffle(a1, 4), b);
  (*t)[13] = mad((*t)[13], subgroupShuffle(a1, 5), b);
  (*t)[14] = mad((*t)[14], subgroupShuffle(a1, 6), b);
  (*t)[15] = mad((*t)[15], subgroupShuffle(a1, 7), b);
}

fn outer(m: mat4x4<f32>, w: vec4<f32>, s: vec4<f32>) -> mat4x4<f32> {
  return mat4x4(m[0] + w * s.x, m[1] + w * s.y, m[2] + w * s.z, m[3] + w * s.w);
}

fn scaled(m: mat4x4<f32>, f: vec4<f32>) -> mat4x4<f32> { return mat4x4(m[0] * f, m[1] * f, m[2] * f, m[3] * f); }

/// The first or the last eight of 16 weights.
fn weights8(w: Scores16, second: bool) -> Weights8 {
  return array(
    select(w[0], w[8], second), select(w[1], w[9], second), select(w[2], w[10], second), select(w[3], w[11], second),
    select(w[4], w[12], second), select(w[5], w[13], second), select(w[6], w[14], second), select(w[7], w[15], second));
}

/// Adds eight broadcast rows, one per lane in a, each times the lane's four weights for it.
fn addRows(sum: mat4x4<f32>, w: Weights8, a: vec4<f32>) -> mat4x4<f32> {
  var m = outer(sum, w[0], subgroupShuffle(a, 0));
  m = outer(m, w[1], subgroupShuffle(a, 1));
  m = outer(m, w[2], subgroupShuffle(a, 2));
  m = outer(m, w[3], subgroupShuffle(a, 3));
  m = outer(m, w[4], subgroupShuffle(a, 4));
  m = outer(m, w[5], subgroupShuffle(a, 5));
  m = outer(m, w[6], subgroupShuffle(a, 6));
  return outer(m, w[7], subgroupShuffle(a, 7));
}

/// Outputs i .. i + 3 become factor times themselves plus the weighted sum of eight broadcast rows.
fn addTo(o: ptr<function, Outputs>, i: u32, w: Weights8, factor: vec4<f32>, x: Texture, half: bool, at: u32) {
  if (i >= p.d / 4) { return; }
  (*o)[i] = addRows(scaled((*o)[i], factor), w, vector(x, half, at + i));
  (*o)[i + 1] = addRows(scaled((*o)[i + 1], factor), w, vector(x, half, at + i + 1));
  (*o)[i + 2] = addRows(scaled((*o)[i + 2], factor), w, vector(x, half, at + i + 2));
  (*o)[i + 3] = addRows(scaled((*o)[i + 3], factor), w, vector(x, half, at + i + 3));
}

/// All outputs become factor times themselves plus the weighted sum of 16 broadcast rows of x: a lane's two start at vectors
/// `at.x` and `at.y`. Eight rows at a time, which is half as much code.
fn addWeighted(o: ptr<function, Outputs>, w: Scores16, factor: vec4<f32>, x: Texture, half: bool, at: vec2<u32>) {
  if (MAX_D > 128) { // indexing by constants would be too much code to compile
    for (var i = 0u; i < p.d / 4; i++) {
      let m = addRows(scaled((*o)[i], factor), weights8(w, false), vector(x, half, at.x + i));
      (*o)[i] = addRows(m, weights8(w, true), vector(x, half, at.y + i));
    }
    return;
  }
  for (var turn = 0u; turn < 2; turn++) {
    let second = turn != 0;
    let eight = weights8(w, second);
    let f = select(factor, vec4(1.0), second);
    let start = select(at.x, at.y, second);
    addTo(o, 0, eight, f, x, half, start);
    addTo(o, 4, eight, f, x, half, start);
    addTo(o, 8, eight, f, x, half, start);
    addTo(o, 12, eight, f, x, half, start);
    if (MAX_D > 64) {
      addTo(o, 16, eight, f, x, half, start);
      addTo(o, 20, eight, f, x, half, start);
      addTo(o, 24, eight, f, x, half, start);
      addTo(o, 28, eight, f, x, half, start);
    }
  }
}

/// Dot products of the lane's four rows of `own`, which start at vectors i, with 16 rows of x: a lane's two start at `at.x`, `at.y`.
fn dotProducts(own: Texture, ownHalf: bool, i: vec4<u32>, x: Texture, half: bool, at: vec2<u32>) -> Scores16 {
  var t: Scores16;
  for (var d = 0u; d < p.d / 4; d++) {
    let b = transpose(mat4x4(vector(own, ownHalf, i.x + d), vector(own, ownHalf, i.y + d),
                             vector(own, ownHalf, i.z + d), vector(own, ownHalf, i.w + d)));
    addProducts(&t, vector(x, half, at.x + d), vector(x, half, at.y + d), b);
  }
  return t;
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
  let at = tileOf(wg, nwg, rows());
  if (at.b >= p.b) { return; }
  let d4 = p.d / 4;
  let row = at.first + lane + vec4(0, 8, 16, 24);
  let i = queries(at, row) * d4;
  let position = vec4<i32>(row / heads()) + p.queryOffset; // position of a row: the last key it can attend to
  let ownSegments = segments(at, position);
  var maxScore = vec4(MASKED);
  var total = vec4<f32>();
  var out: Outputs;
  let end = keysEnd(at);
  for (var s = 0u; s < end; s += 16) {
    let visible = visibleKeys(at, position, ownSegments, s, lane);
    if (isHidden(visible)) { continue; }
    let others = vec2(key(at, s + lane), key(at, s + 8 + lane)) * d4;
    var w = dotProducts(q, Q_HALF, i, k, K_HALF, others);
    let before = maxScore;
    for (var j = 0u; j < 16; j++) {
      w[j] = select(vec4(MASKED), w[j] * p.scale, bit(visible, j));
      maxScore = max(maxScore, w[j]);
    }
    let factor = exp(max(before - maxScore, vec4(-100.0)));
    total *= factor;
    for (var j = 0u; j < 16; j++) {
      w[j] = select(vec4<f32>(), exp(max(w[j] - maxScore, vec4(-100.0))), w[j] > vec4(MASKED));
      total += w[j];
    }
    addWeighted(&out, w, factor, v, V_HALF, others);
  }
  let inverse = select(vec4<f32>(), 1 / total, total > vec4<f32>());
  for (var c = 0u; c < ownCount(at, rows(), lane); c++) {
    for (var d = 0u; d < d4; d++) { y[i[c] + d] = y_v(transpose(out[d])[c] * inverse[c]); }
    lse[p.firstQuery + query(at, row[c])] = vec2(maxScore[c], select(0, log(total[c]), total[c] > 0));
  }
}

@compute @workgroup_size(8)
fn backward_q(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
              @builtin(local_invocation_index) lane: u32) {
  let at = tileOf(wg, nwg, rows());
  if (at.b >= p.b) { return; }
  let d4 = p.d / 4;
  let row = at.first + lane + vec4(0, 8, 16, 24);
  let i = queries(at, row);
  let position = vec4<i32>(row / heads()) + p.queryOffset;
  let ownSegments = segments(at, position);
  let j = p.firstQuery + i;
  let stat = transpose(mat4x4(statsIn[j.x], statsIn[j.y], statsIn[j.z], statsIn[j.w]));
  var out: Outputs;
  let end = keysEnd(at);
  for (var s = 0u; s < end; s += 16) {
    let visible = visibleKeys(at, position, ownSegments, s, lane);
    if (isHidden(visible)) { continue; }
    let others = vec2(key(at, s + lane), key(at, s + 8 + lane)) * d4;
    var w = dotProducts(q, Q_HALF, i * d4, k, K_HALF, others);
    let g = dotProducts(dy, DY_HALF, i * d4, v, V_HALF, others);
    for (var j = 0u; j < 16; j++) {
      let weight = select(vec4<f32>(), exp(max(w[j] * p.scale - stat[0], vec4(-100.0)) - stat[1]), bit(visible, j));
      w[j] = weight * (g[j] - stat[2]) * stat[3];
    }
    addWeighted(&out, w, vec4(1.0), k, K_HALF, others);
  }
  for (var c = 0u; c < ownCount(at, rows(), lane); c++) {
    for (var d = 0u; d < d4; d++) { dq[i[c] * d4 + d] = dq_v(transpose(out[d])[c]); }
  }
}

@compute @workgroup_size(8)
fn backward_kv(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
               @builtin(local_invocation_index) lane: u32) {
  let at = tileOf(wg, nwg, p.s);
  if (at.b >= p.b) { return; }
  let d4 = p.d / 4;
  let s = at.first + lane + vec4(0, 8, 16, 24);
  let i = keys(at, s) * d4;
  let isUnmasked = vec4(unmasked(at, s.x), unmasked(at, s.y), unmasked(at, s.z), unmasked(at, s.w));
  let ownSegments = segments(at, vec4<i32>(s));
  var outK: Outputs;
  var outV: Outputs;
  for (var row = rowsStart(at); row < rows(); row += 16) {
    let visible = visibleRows(at, s, isUnmasked, ownSegments, row, lane);
    if (isHidden(visible)) { continue; }
    let others = vec2(query(at, row + lane), query(at, row + 8 + lane));
    var w = dotProducts(k, K_HALF, i, q, Q_HALF, others * d4);
    var g = dotProducts(v, V_HALF, i, dy, DY_HALF, others * d4);
    let j = p.firstQuery + others;
    let stats = broadcast16(bitcast<vec4<u32>>(statsIn[j.x]), bitcast<vec4<u32>>(statsIn[j.y]));
    for (var j = 0u; j < 16; j++) {
      let stat = bitcast<vec4<f32>>(stats[j]);
      w[j] = select(vec4<f32>(), exp(max(w[j] * p.scale - stat.x, vec4(-100.0)) - stat.y), bit(visible, j));
      g[j] = w[j] * (g[j] - stat.z) * stat.w;
    }
    addWeighted(&outV, w, vec4(1.0), dy, DY_HALF, others * d4);
    addWeighted(&outK, g, vec4(1.0), q, Q_HALF, others * d4);
  }
  for (var c = 0u; c < ownCount(at, p.s, lane); c++) {
    for (var d = 0u; d < d4; d++) {
      dk[i[c] + d] = dk_v(transpose(outK[d])[c]);
      dv[i[c] + d] = dv_v(transpose(outV[d])[c]);
    }
  }
}
