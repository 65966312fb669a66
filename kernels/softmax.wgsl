// forward: y[n,c] = e^x / Σ e^x over the visible c of a row; 0 where the byte of mask is 0, and in a row with nothing visible
//   in x[N,C] mask[M,C] as bytes, row (firstRow + n) mod M of it, where MASKED   out y[N,C]
// backward: y = dx = yIn · (dy - Σ_c dy · yIn)
//   in yIn[N,C] dy[N,C]   out y[N,C]
//   grid: one workgroup of LANES threads per `each` rows, for both
//   why: each thread has KEPT loads in flight, which stay in registers if they cover the row; maximum and sum come
//   from one pass, which rescales the running sum when the maximum grows
//   numerics: the row's maximum is subtracted as 2 · (x/2 - max/2), so that no difference overflows; sums are f32
enable subgroups;
// SUBGROUPS=0:
requires immediate_address_space;

const LANES: u32 = 64;
const KEPT: u32 = 4;
const LOWEST = -3.4028234663852886e38; // not above any value; finite, because WGSL may assume there are no infinities

alias x_v = vec4<f32>;
// WIDTH=1: alias x_v = f32;
alias y_v = vec4<f32>;
// WIDTH=1: alias y_v = f32;
alias yIn_v = vec4<f32>;
// WIDTH=1: alias yIn_v = f32;
alias dy_v = vec4<f32>;
// WIDTH=1: alias dy_v = f32;
alias value = vec4<f32>; // the type of intermediate values
// WIDTH=1: alias value = f32;
alias flags = vec4<bool>;
// WIDTH=1: alias flags = bool;
alias Batch = array<value, KEPT>; // vectors of a thread, LANES apart

struct Params { n: u32, vectors: u32, each: u32, maskRows: u32, firstRow: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read> mask: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<y_v>;
@group(0) @binding(3) var<storage, read> yIn: array<yIn_v>;
@group(0) @binding(4) var<storage, read> dy: array<dy_v>;

struct Grid {
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(num_subgroups) subgroups: u32,
  // SUBGROUPS=0:
}
struct Thread {
  @builtin(local_invocation_index) lane: u32,
  @builtin(subgroup_id) subgroup: u32,
  // SUBGROUPS=0:
}

var<workgroup> partials: array<f32, LANES>;

/// Publishes one value per subgroup (without subgroups, per thread) to the workgroup; returns how many there are.
fn share(at: Grid, t: Thread, part: f32) -> u32 {
  workgroupBarrier(); // all threads have read what an earlier call left
  if (subgroupElect()) { partials[t.subgroup] = part; }
  // SUBGROUPS=0: partials[t.lane] = part;
  workgroupBarrier();
  return at.subgroups;
  // SUBGROUPS=0: return LANES;
}

fn sumOfPartials(lane: u32, given: u32) -> f32 {
  var count = given;
  for (; count > 16; count /= 2) {
    if (lane < count / 2) { partials[lane] += partials[lane + count / 2]; }
    workgroupBarrier();
  }
  var sum = 0.0;
  for (var i = 0u; i < count; i++) { sum += partials[i]; }
  return sum;
}

/// The sum of v over the workgroup.
fn sumOf(at: Grid, t: Thread, v: f32) -> f32 { return sumOfPartials(t.lane, share(at, t, subgroupAdd(v))); }
// SUBGROUPS=0: fn sumOf(at: Grid, t: Thread, v: f32) -> f32 { return sumOfPartials(t.lane, share(at, t, v)); }
// SUBGROUPS=1: fn sumOf(at: Grid, t: Thread, v: f32) -> f32 { return subgroupAdd(v); }

fn maxOfPartials(lane: u32, given: u32) -> f32 {
  var count = given;
  for (; count > 16; count /= 2) {
    if (lane < count / 2) { partials[lane] = max(partials[lane], partials[lane + count / 2]); }
    workgroupBarrier();
  }
  var largest = partials[0];
  for (var i = 1u; i < count; i++) { largest = max(largest, partials[i]); }
  return largest;
}

/// The maximum of v over the workgroup.
fn maxOf(at: Grid, t: Thread, v: f32) -> f32 { return maxOfPartials(t.lane, share(at, t, subgroupMax(v))); }
// SUBGROUPS=0: fn maxOf(at: Grid, t: Thread, v: f32) -> f32 { return maxOfPartials(t.lane, share(at, t, v)); }
// SUBGROUPS=1: fn maxOf(at: Grid, t: Thread, v: f32) -> f32 { return subgroupMax(v); }

fn total(v: value) -> f32 { return dot(v, value(1.0)); }
// WIDTH=1: fn total(v: value) -> f32 { return v; }

fn largestOf(v: value) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
// WIDTH=1: fn largestOf(v: value) -> f32 { return v; }

/// e^(v - largest), for v <= largest.
fn shifted(v: value, largest: f32) -> value { return exp(2.0 * max(0.5 * v - 0.5 * largest, value(-60.0))); }

fn shiftedOne(v: f32, largest: f32) -> f32 { return exp(2.0 * max(0.5 * v - 0.5 * largest, -60.0)); }

/// Which elements of vector `i` of the mask are not 0.
fn visible(i: u32) -> flags { return ((vec4(mask[i]) >> vec4(0, 8, 16, 24)) & vec4(0xff)) != vec4(0); }
// WIDTH=1: fn visible(i: u32) -> flags { return ((mask[i / 4] >> (i % 4 * 8)) & 0xff) != 0; }

fn shown(row: u32, i: u32) -> flags { return flags(i < p.vectors); }
// MASKED=1: fn shown(row: u32, i: u32) -> flags { return flags(i < p.vectors) & visible((p.firstRow + row) % p.maskRows * p.vectors + min(i, p.vectors - 1)); }

/// The batch of x that starts at vector `i` of a row; LOWEST past the row's end and where the mask is 0.
fn fetchX(kept: ptr<function, Batch>, row: u32, i: u32) {
  for (var j = 0u; j < KEPT; j++) {
    let at = i + j * LANES;
    kept[j] = select(value(LOWEST), value(x[row * p.vectors + min(at, p.vectors - 1)]), shown(row, at));
  }
}

/// The same batches of dy and yIn; zeros past the end.
fn fetchGradient(dys: ptr<function, Batch>, ys: ptr<function, Batch>, row: u32, i: u32) {
  for (var j = 0u; j < KEPT; j++) {
    let at = row * p.vectors + min(i + j * LANES, p.vectors - 1);
    dys[j] = select(value(), value(dy[at]), i + j * LANES < p.vectors);
    ys[j] = value(yIn[at]);
  }
}

@compute @workgroup_size(LANES)
fn forward(at: Grid, t: Thread) {
  let first = (at.group.x + at.group.y * at.groups.x) * p.each;
  let batches = (p.vectors + LANES * KEPT - 1) / (LANES * KEPT);
  for (var row = first; row < min(first + p.each, p.n); row++) {
    var es: Batch; // e^(x - largest)
    var largest = LOWEST;
    var sum = 0.0;
    for (var k = 1u; k <= batches; k++) {
      let i = select(k, 0, k == batches) * LANES * KEPT + t.lane; // batch 0 comes last
      fetchX(&es, row, i);
      var most = largest;
      for (var j = 0u; j < KEPT; j++) { most = max(most, largestOf(es[j])); }
      sum *= shiftedOne(largest, most);
      largest = most;
      for (var j = 0u; j < KEPT; j++) {
        es[j] = shifted(es[j], largest);
        sum += total(select(value(), es[j], shown(row, i + j * LANES)));
      }
    }
    let most = maxOf(at, t, largest);
    let own = shiftedOne(largest, most);
    let scale = 1.0 / max(1.0, sumOf(at, t, sum * own)); // the maximum itself adds 1: a smaller sum means that nothing is visible
    for (var k = 0u; k < batches; k++) {
      let i = k * LANES * KEPT + t.lane;
      var factor = own * scale;
      if (k > 0) {
        fetchX(&es, row, i);
        for (var j = 0u; j < KEPT; j++) { es[j] = shifted(es[j], most); }
        factor = scale;
      }
      for (var j = 0u; j < KEPT; j++) {
        let c = i + j * LANES;
        if (c < p.vectors) { y[row * p.vectors + c] = y_v(select(value(), es[j] * factor, shown(row, c))); }
      }
    }
  }
}

@compute @workgroup_size(LANES)
fn backward(at: Grid, t: Thread) {
  let first = (at.group.x + at.group.y * at.groups.x) * p.each;
  let batches = (p.vectors + LANES * KEPT - 1) / (LANES * KEPT);
  for (var row = first; row < min(first + p.each, p.n); row++) {
    var dys: Batch;
    var ys: Batch;
    var sum = value();
    for (var k = 1u; k <= batches; k++) {
      fetchGradient(&dys, &ys, row, select(k, 0, k == batches) * LANES * KEPT + t.lane);
      for (var j = 0u; j < KEPT; j++) { sum += dys[j] * ys[j]; }
    }
    let all = sumOf(at, t, total(sum));
    for (var k = 0u; k < batches; k++) {
      let i = k * LANES * KEPT + t.lane;
      if (k > 0) { fetchGradient(&dys, &ys, row, i); }
      for (var j = 0u; j < KEPT; j++) {
        let c = i + j * LANES;
        if (c < p.vectors) { y[row * p.vectors + c] = y_v(ys[j] * (dys[j] - all)); }
      }
    }
  }
}
