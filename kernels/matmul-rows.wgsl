// matmul for software drivers: y[m,n] = Σ_k a·b (+ bias[n]) (+ y[m,n]), in the forms
//   nt: a[M,K] b[N,K]   nn: a[M,K] b[K,N]   tn: a[K,M] b[K,N]   batched: P of each, one after the other
//   in a b bias[N]   out y[M,N]   grid: one subgroup of 8 lanes per block of ROWS rows and 32 columns, 4 columns a lane
//   wants rows of a, b and y in multiples of 4 (for tn: M and N)
//   a starts at aAt with row stride aRow; y at column yAt with row stride yRow
//   why: such a driver runs a load lane by lane, at some 9 instructions a value, and a multiply-add for 8 lanes in 2. So
//   each value is loaded once per block: b by the lane that owns the column, a by one lane, which broadcasts it. Bytes:
//   (ROWS + 32)·K elements a block for 64·ROWS·K operations. No workgroup memory: reading it costs as much as a binding.
//   numerics: sums stay f32 whatever the elements are, over k in order
requires immediate_address_space;
enable subgroups;

const ROWS: u32 = 32; // 8, 16 or 32

alias a_v = vec4<f32>; // a f16: alias a_v = vec2<u32>;
alias b_v = vec4<f32>; // b f16: alias b_v = vec2<u32>;
alias y_v = vec4<f32>; // y f16: alias y_v = vec2<u32>;
alias bias_t = f32;

struct Params {
  batches: u32, m: u32, n: u32, k: u32, aAt: u32, aRow: u32, yAt: u32, yRow: u32,
  accumulate: u32, hasBias: u32
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a: array<a_v>;
@group(0) @binding(1) var<storage, read> b: array<b_v>;
@group(0) @binding(2) var<storage, read> bias: array<bias_t>;
@group(0) @binding(3) var<storage, read_write> y: array<y_v>;

// Halves come two to a word: half as many loads as four halves.
fn fromA(v: a_v) -> vec4<f32> { return v; } // a f16: fn fromA(v: a_v) -> vec4<f32> { return vec4(unpack2x16float(v.x), unpack2x16float(v.y)); }
fn fromB(v: b_v) -> vec4<f32> { return v; } // b f16: fn fromB(v: b_v) -> vec4<f32> { return vec4(unpack2x16float(v.x), unpack2x16float(v.y)); }
fn fromY(v: y_v) -> vec4<f32> { return v; } // y f16: fn fromY(v: y_v) -> vec4<f32> { return vec4(unpack2x16float(v.x), unpack2x16float(v.y)); }
fn toY(v: vec4<f32>) -> y_v { return v; } // y f16: fn toY(v: vec4<f32>) -> y_v { return vec2(pack2x16float(v.xy), pack2x16float(v.zw)); }

/// Four columns of 32 rows, of which ROWS are used.
alias Tile = array<vec4<f32>, 32>;

/// What a subgroup works on. Blocks past the last batch sum and store nothing: depth and m are 0.
struct Block { batch: u32, row: u32, col: u32, depth: u32, m: u32 }

fn blockOf(wg: vec3<u32>, nwg: vec3<u32>) -> Block {
  let rows = (p.m + ROWS - 1) / ROWS;
  let cols = (p.n + 31) / 32;
  let i = wg.x + wg.y * nwg.x; // rows first: the blocks that share a part of b run close together
  let batch = i / (rows * cols);
  let real = batch < p.batches;
  return Block(batch, i % rows * ROWS, i / rows % cols * 32, select(0, p.k, real), select(0, p.m, real));
}

/// Four values of a row of a times as many rows of b.
fn mad(sum: vec4<f32>, s: vec4<f32>, b: mat4x4<f32>) -> vec4<f32> {
  return sum + s.x * b[0] + s.y * b[1] + s.z * b[2] + s.w * b[3];
}

/// Eight rows of the tile, the lane of a row holding its four values of a.
fn addRows(t: ptr<function, Tile>, first: u32, s: vec4<f32>, b: mat4x4<f32>) {
  (*t)[first] = mad((*t)[first], subgroupBroadcast(s, 0), b);
  (*t)[first + 1] = mad((*t)[first + 1], subgroupBroadcast(s, 1), b);
  (*t)[first + 2] = mad((*t)[first + 2], subgroupBroadcast(s, 2), b);
  (*t)[first + 3] = mad((*t)[first + 3], subgroupBroadcast(s, 3), b);
  (*t)[first + 4] = mad((*t)[first + 4], subgroupBroadcast(s, 4), b);
  (*t)[first + 5] = mad((*t)[first + 5], subgroupBroadcast(s, 5), b);
  (*t)[first + 6] = mad((*t)[first + 6], subgroupBroadcast(s, 6), b);
  (*t)[first + 7] = mad((*t)[first + 7], subgroupBroadcast(s, 7), b);
}

/// Eight rows of the tile, lane 4·i + j holding rows 4·i .. 4·i + 3 of a's column j.
fn addColumns(t: ptr<function, Tile>, first: u32, s: vec4<f32>, b: mat4x4<f32>) {
  let c0 = subgroupBroadcast(s, 0); let c1 = subgroupBroadcast(s, 1);
  let c2 = subgroupBroadcast(s, 2); let c3 = subgroupBroadcast(s, 3);
  let d0 = subgroupBroadcast(s, 4); let d1 = subgroupBroadcast(s, 5);
  let d2 = subgroupBroadcast(s, 6); let d3 = subgroupBroadcast(s, 7);
  let c = transpose(mat4x4(c0, c1, c2, c3));
  let d = transpose(mat4x4(d0, d1, d2, d3));
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
  var t = tile; // a copy, so that only it is indexed at run time
  var add = vec4<f32>();
  if (p.hasBias != 0) {
let i = p.yAt + col;
    add = vec4(f32(bias[i]), f32(bias[i + 1]), f32(bias[i + 2]), f32(bias[i + 3]));
  }
  for (var m = at.row; m < min(at.row + ROWS, at.m); m++) {
    let i = (at.batch * p.m * p.n + p.yAt + m * p.yRow + col) / 4;
    var v = t[m - at.row] + add;
    if (p.accumulate != 0) { v += fromY(y[i]); }
    y[i] = toY(v);
  }
}

/// Where row `row` of a[M,K] starts, in vectors; past the end, the last row, whose sums nobody stores.
fn rowOfA(at: Block, row: u32) -> u32 {
  return (at.batch * p.m * p.k + p.aAt + min(row, p.m - 1) * p.aRow) / 4;
}

@compute @workgroup_size(8)
fn nt(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
  let at = blockOf(wg, nwg);
  let col = at.col + lane * 4;
  let r0 = rowOfA(at, at.row + lane);
  let r1 = rowOfA(at, at.row + 8 + lane);
  let r2 = rowOfA(at, at.row + 16 + lane);
  let r3 = rowOfA(at, at.row + 24 + lane);
  let k4 = p.k / 4;
  let c0 = (at.batch * p.n + min(col, p.n - 4)) * k4;
  let c1 = c0 + k4;
  let c2 = c1 + k4;
  let c3 = c2 + k4;
  var t: Tile;
  for (var i = 0u; i < at.depth / 4; i++) {
    let bt = transpose(mat4x4(fromB(b[c0 + i]), fromB(b[c1 + i]), fromB(b[c2 + i]), fromB(b[c3 + i])));
    addRows(&t, 0, fromA(a[r0 + i]), bt);
    if (ROWS > 8) { addRows(&t, 8, fromA(a[r1 + i]), bt); }
    if (ROWS > 16) {
      addRows(&t, 16, fromA(a[r2 + i]), bt);
      addRows(&t, 24, fromA(a[r3 + i]), bt);
    }
  }
  store(t, at, col);
}

@compute @workgroup_size(8)
fn nn(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
  let at = blockOf(wg, nwg);
  let col = at.col + lane * 4;
  let r0 = rowOfA(at, at.row + lane);
  let r1 = rowOfA(at, at.row + 8 + lane);
  let r2 = rowOfA(at, at.row + 16 + lane);
  let r3 = rowOfA(at, at.row + 24 + lane);
  let n4 = p.n / 4;
  var c = at.batch * p.k * n4 + min(col / 4, n4 - 1);
  var t: Tile;
  for (var i = 0u; i < at.depth / 4; i++) {
    let bt = mat4x4(fromB(b[c]), fromB(b[c + n4]), fromB(b[c + 2 * n4]), fromB(b[c + 3 * n4]));
    c += 4 * n4;
    addRows(&t, 0, fromA(a[r0 + i]), bt);
    if (ROWS > 8) { addRows(&t, 8, fromA(a[r1 + i]), bt); }
    if (ROWS > 16) {
      addRows(&t, 16, fromA(a[r2 + i]), bt);
      addRows(&t, 24, fromA(a[r3 + i]), bt);
    }
  }
  store(t, at, col);
}

/// Four values of column k of a, from row `row` on: zero past the last column, anything past the last row.
fn columnOfA(at: Block, row: u32, k: u32) -> vec4<f32> {
  let i = (at.batch * p.k * p.m + p.aAt + min(k, p.k - 1) * p.aRow + min(row, p.m - 4)) / 4;
  return select(vec4<f32>(), fromA(a[i]), k < p.k);
}

@compute @workgroup_size(8)
fn tn(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
      @builtin(local_invocation_index) lane: u32) {
  let at = blockOf(wg, nwg);
  let col = at.col + lane * 4;
  let row = at.row + lane / 4 * 4;
  let n4 = p.n / 4;
  let c = at.batch * p.k * n4 + min(col / 4, n4 - 1);
  var t: Tile;
  for (var i = 0u; i < at.depth; i += 4) {
    let last = p.k - 1;
    let bt = mat4x4(fromB(b[c + i * n4]), fromB(b[c + min(i + 1, last) * n4]),
                    fromB(b[c + min(i + 2, last) * n4]), fromB(b[c + min(i + 3, last) * n4]));
    let k = i + lane % 4;
    addColumns(&t, 0, columnOfA(at, row, k), bt);
    if (ROWS > 8) { addColumns(&t, 8, columnOfA(at, row + 8, k), bt); }
    if (ROWS > 16) {
      addColumns(&t, 16, columnOfA(at, row + 16, k), bt);
      addColumns(&t, 24, columnOfA(at, row + 24, k), bt);
    }
  }
  store(t, at, col);
}
