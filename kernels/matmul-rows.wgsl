// matmul for software drivers: y[m,n] = Σ_k a·b (+ bias[n]) (+ y[m,n]), in the forms
//   nt: a[M,K] b[N,K]   nn: a[M,K] b[K,N]   tn: a[K,M] b[K,N]   batched: P of each, one after the other
//   in a b (textures) bias[N]   out y[M,N]   grid: one subgroup of 8 lanes per block of ROWS rows x 32 columns, 4 columns per lane
//   N, and K (for tn: M), are multiples of 4, and of 8 with B_WIDE
//   a starts at aAt with row stride aRow; y at column yAt with row stride yRow
//   why: such a driver runs a load lane by lane, at some 9 instructions per value from a buffer and 3 from a texture, and
//   a multiply-add of 8 lanes in 2. So operands are textures, and each value is loaded once per block: b by the lane that
//   owns the column, a by one lane, which broadcasts it. That is (ROWS + 32)·K loads for 64·ROWS·K operations. There is no
//   workgroup memory, which costs as much to read as a buffer. Broadcasts are shuffles from a constant lane, one
//   instruction each: for subgroupBroadcast the driver reads the mask of active lanes every time, and its compile time is
//   quadratic in the number of such reads.
//   numerics: sums are f32 for every element type, over k in order
requires immediate_address_space;
enable subgroups;

const ROWS: u32 = 16; // or 8
const B_WIDE: u32 = 0; // 1: rows of an f16 b start at whole texels, so that nt reads eight values per texel
const WIDTH: u32 = 2048; // texels in a row of a texture: TEXTURE_WIDTH of texture-layout.ts

const A_HALF: bool = false; // a f16: const A_HALF: bool = true;
const B_HALF: bool = false; // b f16: const B_HALF: bool = true;
alias y_v = vec4<f32>;
alias bias_t = f32;

struct Params {
  batches: u32, m: u32, n: u32, k: u32, aAt: u32, aRow: u32, yAt: u32, yRow: u32,
  accumulate: u32, hasBias: u32
}
var<immediate> p: Params;

@group(0) @binding(0) var a: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(1) var b: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(2) var<storage, read> bias: array<bias_t>;
@group(0) @binding(3) var<storage, read_write> y: array<y_v>;

fn unpackF16(v: vec2<u32>) -> vec4<f32> { return vec4(unpack2x16float(v.x), unpack2x16float(v.y)); }

fn texelA(i: u32) -> vec4<u32> { return textureLoad(a, vec2(i % WIDTH, i / WIDTH)); }
fn texelB(i: u32) -> vec4<u32> { return textureLoad(b, vec2(i % WIDTH, i / WIDTH)); }

/// Elements i .. i + 3 of an operand, i a multiple of 4.
fn fourOfA(i: u32) -> vec4<f32> {
  if (!A_HALF) { return bitcast<vec4<f32>>(texelA(i / 4)); }
  let t = texelA(i / 8);
  return unpackF16(select(t.xy, t.zw, (i & 4) != 0));
}
fn fourOfB(i: u32) -> vec4<f32> {
  if (!B_HALF) { return bitcast<vec4<f32>>(texelB(i / 4)); }
  let t = texelB(i / 8);
  return unpackF16(select(t.xy, t.zw, (i & 4) != 0));
}

/// Four columns of 16 rows, of which ROWS are used. 24 rows, or 8 columns, gain 5 % for half as much code again.
alias Tile = array<vec4<f32>, 16>;

/// The block of a subgroup. Blocks past the last batch have depth and m 0, so that they store nothing.
struct Block { batch: u32, row: u32, col: u32, depth: u32, m: u32 }

fn blockOf(wg: vec3<u32>, nwg: vec3<u32>) -> Block {
  let rows = (p.m + ROWS - 1) / ROWS;
  let cols = (p.n + 31) / 32;
  let i = wg.x + wg.y * nwg.x; // row blocks first: blocks with the same columns of b run close together
  let batch = i / (rows * cols);
  let real = batch < p.batches;
  return Block(batch, i % rows * ROWS, i / rows % cols * 32, select(0, p.k, real), select(0, p.m, real));
}

/// Adds four values of a row of a times four rows of b.
fn mad(sum: vec4<f32>, s: vec4<f32>, b: mat4x4<f32>) -> vec4<f32> {
  return sum + s.x * b[0] + s.y * b[1] + s.z * b[2] + s.w * b[3];
}

/// Adds to eight rows of the tile; lane i holds four values of row i of a.
fn addRows(t: ptr<function, Tile>, first: u32, s: vec4<f32>, b: mat4x4<f32>) {
  (*t)[first] = mad((*t)[first], subgroupShuffle(s, 0), b);
  (*t)[first + 1] = mad((*t)[first + 1], subgroupShuffle(s, 1), b);
  (*t)[first + 2] = mad((*t)[first + 2], subgroupShuffle(s, 2), b);
  (*t)[first + 3] = mad((*t)[first + 3], subgroupShuffle(s, 3), b);
  (*t)[first + 4] = mad((*t)[first + 4], subgroupShuffle(s, 4), b);
  (*t)[first + 5] = mad((*t)[first + 5], subgroupShuffle(s, 5), b);
  (*t)[first + 6] = mad((*t)[first + 6], subgroupShuffle(s, 6), b);
  (*t)[first + 7] = mad((*t)[first + 7], subgroupShuffle(s, 7), b);
}

/// Adds to eight rows of the tile; lane 4·i + j holds rows 4·i .. 4·i + 3 of column j of a.
fn addColumns(t: ptr<function, Tile>, first: u32, s: vec4<f32>, b: mat4x4<f32>) {
  let c = transpose(mat4x4(subgroupShuffle(s, 0), subgroupShuffle(s, 1),
                           subgroupShuffle(s, 2), subgroupShuffle(s, 3)));
  let d = transpose(mat4x4(subgroupShuffle(s, 4), subgroupShuffle(s, 5),
                           subgroupShuffle(s, 6), subgroupShuffle(s, 7)));
  (*t)[first] = mad((*t)[first], c[0], b);
  (*t)[first + 1] = mad((*t)[first + 1], c[1], b);
  (*t)[first + 2] = mad((*t)[first + 2], c[2], b);
  (*t)[first + 3] = mad((*t)[first + 3], c[3], b);
  (*t)[first + 4] = mad((*t)[first + 4], d[0], b);
  (*t)[first + 5] = mad((*t)[first + 5], d[1], b);
  (*t)[first + 6] = mad((*t)[first + 6], d[2], b);
  (*t)[first + 7] = mad((*t)[first + 7], d[3], b);
}

fn store(tile: Tile, at: Block, col: u32) {
  if (col >= p.n) { return; }
  var t = tile; // indexing with a variable is confined to this copy
  var add = vec4<f32>();
  if (p.hasBias != 0) {
    let i = p.yAt + col;
    add = vec4(f32(bias[i]), f32(bias[i + 1]), f32(bias[i + 2]), f32(bias[i + 3]));
  }
  for (var m = at.row; m < min(at.row + ROWS, at.m); m++) {
    let i = (at.batch * p.m * p.n + p.yAt + m * p.yRow + col) / 4;
    var v = t[m - at.row] + add;
    if (p.accumulate != 0) { v += vec4<f32>(y[i]); }
    y[i] = y_v(v);
  }
}

/// Where row `row` of a[M,K] starts; past the end, the last row, whose sums are not stored.
fn rowOfA(at: Block, row: u32) -> u32 {
  return at.batch * p.m * p.k + p.aAt + min(row, p.m - 1) * p.aRow;
}

/// Adds four steps of k for all rows, which start at r; b has the lane's four columns.
fn addBlock(t: ptr<function, Tile>, r: vec2<u32>, k: u32, b: mat4x4<f32>) {
  addRows(t, 0, fourOfA(r.x + k), b);
  if (ROWS > 8) { addRows(t, 8, fourOfA(r.y + k), b); }
}

@compute @workgroup_size(8)
fn nt(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
  let at = blockOf(wg, nwg);
  let col = at.col + lane * 4;
  let r = vec2(rowOfA(at, at.row + lane), rowOfA(at, at.row + 8 + lane));
  let c0 = (at.batch * p.n + min(col, p.n - 4)) * p.k;
  let c = vec4(c0, c0 + p.k, c0 + 2 * p.k, c0 + 3 * p.k);
  var t: Tile;
  if (B_WIDE != 0) {
    for (var k = 0u; k < at.depth; k += 8) {
      let b0 = texelB((c.x + k) / 8);
      let b1 = texelB((c.y + k) / 8);
      let b2 = texelB((c.z + k) / 8);
      let b3 = texelB((c.w + k) / 8);
      addBlock(&t, r, k, transpose(mat4x4(unpackF16(b0.xy), unpackF16(b1.xy), unpackF16(b2.xy), unpackF16(b3.xy))));
      addBlock(&t, r, k + 4, transpose(mat4x4(unpackF16(b0.zw), unpackF16(b1.zw), unpackF16(b2.zw), unpackF16(b3.zw))));
    }
  } else {
    for (var k = 0u; k < at.depth; k += 4) {
      addBlock(&t, r, k, transpose(mat4x4(fourOfB(c.x + k), fourOfB(c.y + k), fourOfB(c.z + k), fourOfB(c.w + k))));
    }
  }
  store(t, at, col);
}

@compute @workgroup_size(8)
fn nn(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
  let at = blockOf(wg, nwg);
  let col = at.col + lane * 4;
  let r = vec2(rowOfA(at, at.row + lane), rowOfA(at, at.row + 8 + lane));
  var c = at.batch * p.k * p.n + min(col, p.n - 4);
  var t: Tile;
  for (var k = 0u; k < at.depth; k += 4) {
    addBlock(&t, r, k, mat4x4(fourOfB(c), fourOfB(c + p.n), fourOfB(c + 2 * p.n), fourOfB(c + 3 * p.n)));
    c += 4 * p.n;
  }
  store(t, at, col);
}

/// Four values of column k of a, from row `row` on: zero past the last column, anything past the last row.
fn columnOfA(at: Block, row: u32, k: u32) -> vec4<f32> {
  let i = at.batch * p.k * p.m + p.aAt + min(k, p.k - 1) * p.aRow + min(row, p.m - 4);
  return select(vec4<f32>(), fourOfA(i), k < p.k);
}

@compute @workgroup_size(8)
fn tn(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
  let at = blockOf(wg, nwg);
  let col = at.col + lane * 4;
  let row = at.row + lane / 4 * 4;
  let c = at.batch * p.k * p.n + min(col, p.n - 4);
  let last = p.k - 1;
  var t: Tile;
  for (var i = 0u; i < at.depth; i += 4) {
    let bt = mat4x4(fourOfB(c + i * p.n), fourOfB(c + min(i + 1, last) * p.n),
                    fourOfB(c + min(i + 2, last) * p.n), fourOfB(c + min(i + 3, last) * p.n));
    let k = i + lane % 4;
    addColumns(&t, 0, columnOfA(at, row, k), bt);
    if (ROWS > 8) { addColumns(&t, 8, columnOfA(at, row + 8, k), bt); }
  }
  store(t, at, col);
}
