// rmsNorm and layerNorm over rows, and their gradients; with CENTERED = 0 (rmsNorm) the mean is 0 and there is no bias
// forward: y[n,c] = (x[n,c] - mean[n]) · rstd[n] · gain[c] + bias[c],  rstd[n] = 1/√(mean_c (x - mean)² + eps)
//   in x[N,C] gain[C] bias[C]   out y[N,C] mean[N] rstd[N] (kept for backward)
// backward_x: y = dx[n,c] = rstd · (g - mean_c g - x̂ · mean_c(g · x̂)),  g = dy · gain, x̂ = (x - mean) · rstd
//   in x[N,C] gain[C] meanIn[N] rstdIn[N] dy[N,C]   out y[N,C]   grid of both: one workgroup of LANES threads per `each` rows
// backward_gain: dgain[c] = Σ_n dy · x̂, added to the old value when accumulate
//   in x[N,C] meanIn[N] rstdIn[N] dy[N,C]   out dgain[C]   grid: one workgroup per COLUMNS vectors of a row
//   why: each thread has KEPT loads in flight, which stay in registers if they cover the row; a second pass over a
//   longer row begins with the batch that the first one read last
//   numerics: the variance sums squared differences from the mean, not a difference of squares; sums are f32 for every
//   element type; every output is written   source: Zhang & Sennrich 2019, eq. 4; Ba et al. 2016, eq. 4
enable subgroups;
// SUBGROUPS=0:
requires immediate_address_space;

const LANES: u32 = 64;
const KEPT: u32 = 4;
const COLUMNS: u32 = 8;
const CENTERED: u32 = 1;

alias x_v = vec4<f32>;
// WIDTH=1: alias x_v = f32;
alias gain_v = vec4<f32>;
// WIDTH=1: alias gain_v = f32;
alias bias_v = vec4<f32>;
// WIDTH=1: alias bias_v = f32;
alias y_v = vec4<f32>;
// WIDTH=1: alias y_v = f32;
alias dy_v = vec4<f32>;
// WIDTH=1: alias dy_v = f32;
alias value = vec4<f32>; // the type of intermediate values
// WIDTH=1: alias value = f32;
alias Batch = array<value, KEPT>; // vectors of a thread, LANES apart

struct Params { n: u32, c: u32, vectors: u32, each: u32, eps: f32, hasGain: u32, hasBias: u32, accumulate: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read> gain: array<gain_v>;
@group(0) @binding(2) var<storage, read> bias: array<bias_v>;
@group(0) @binding(3) var<storage, read_write> y: array<y_v>;
@group(0) @binding(4) var<storage, read_write> mean: array<f32>;
@group(0) @binding(5) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(6) var<storage, read> meanIn: array<f32>;
@group(0) @binding(7) var<storage, read> rstdIn: array<f32>;
@group(0) @binding(8) var<storage, read> dy: array<dy_v>;
@group(0) @binding(9) var<storage, read_write> dgain: array<value>;

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
var<workgroup> columns: array<value, LANES>;

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

fn total(v: value) -> f32 { return dot(v, value(1.0)); }
// WIDTH=1: fn total(v: value) -> f32 { return v; }

fn gainAt(i: u32) -> value {
  if (p.hasGain == 0) { return value(1.0); }
  return value(gain[i]);
}

fn centerOf(n: u32) -> f32 { return meanIn[n]; }
// CENTERED=0: fn centerOf(n: u32) -> f32 { return 0.0; }

/// The batch of x that starts at vector `i` of a row; zeros past the row's end.
fn fetchX(kept: ptr<function, Batch>, start: u32, i: u32) {
  for (var j = 0u; j < KEPT; j++) {
    let at = i + j * LANES;
    kept[j] = select(value(), value(x[start + min(at, p.vectors - 1)]), at < p.vectors);
  }
}

/// The same batch of dy · gain.
fn fetchG(kept: ptr<function, Batch>, start: u32, i: u32) {
  for (var j = 0u; j < KEPT; j++) {
    let at = min(i + j * LANES, p.vectors - 1);
    kept[j] = select(value(), value(dy[start + at]) * gainAt(at), i + j * LANES < p.vectors);
  }
}

/// Batch k of a pass that begins with batch `first`: each pass begins with the batch that the previous one ended with.
fn batchOf(k: u32, first: u32, batches: u32) -> u32 { return select(first + k, first + k - batches, first + k >= batches); }

@compute @workgroup_size(LANES)
fn forward(at: Grid, t: Thread) {
  let first = (at.group.x + at.group.y * at.groups.x) * p.each;
  let batches = (p.vectors + LANES * KEPT - 1) / (LANES * KEPT);
  for (var row = first; row < min(first + p.each, p.n); row++) {
    let start = row * p.vectors;
    var xs: Batch;
    var center = 0.0;
    if (CENTERED == 1) {
      var sum = value();
      for (var k = 1u; k <= batches; k++) { // batch 0 comes last
        fetchX(&xs, start, batchOf(k, 0, batches) * LANES * KEPT + t.lane);
        for (var j = 0u; j < KEPT; j++) { sum += xs[j]; }
      }
      center = sumOf(at, t, total(sum)) / f32(p.c);
    }
    var squares = value();
    for (var k = 1 - CENTERED; k < batches + 1 - CENTERED; k++) {
      let i = batchOf(k, 0, batches) * LANES * KEPT + t.lane;
      if (k > 0) { fetchX(&xs, start, i); }
      for (var j = 0u; j < KEPT; j++) {
        let d = select(value(), xs[j] - center, i + j * LANES < p.vectors);
        squares += d * d;
      }
    }
    let r = inverseSqrt(sumOf(at, t, total(squares)) / f32(p.c) + p.eps);
    if (t.lane == 0) {
      mean[row] = center;
      // CENTERED=0:
      rstd[row] = r;
    }
    let begin = (batches - 1) * CENTERED;
    for (var k = 0u; k < batches; k++) {
      let i = batchOf(k, begin, batches) * LANES * KEPT + t.lane;
      if (k > 0) { fetchX(&xs, start, i); }
      for (var j = 0u; j < KEPT; j++) {
        let c = i + j * LANES;
        if (c < p.vectors) {
          var v = (xs[j] - center) * r * gainAt(c);
          if (p.hasBias == 1) { v += value(bias[c]); }
          // CENTERED=0:
          y[start + c] = y_v(v);
        }
      }
    }
  }
}

@compute @workgroup_size(LANES)
fn backward_x(at: Grid, t: Thread) {
  let first = (at.group.x + at.group.y * at.groups.x) * p.each;
  let batches = (p.vectors + LANES * KEPT - 1) / (LANES * KEPT);
  for (var row = first; row < min(first + p.each, p.n); row++) {
    let start = row * p.vectors;
    let center = centerOf(row);
    let r = rstdIn[row];
    var xs: Batch;
    var gs: Batch;
    var sum = value();
    var product = value();
    for (var k = 1u; k <= batches; k++) {
      let i = batchOf(k, 0, batches) * LANES * KEPT + t.lane;
      fetchX(&xs, start, i);
      fetchG(&gs, start, i);
      for (var j = 0u; j < KEPT; j++) {
        if (CENTERED == 1) { sum += gs[j]; }
        product += gs[j] * (xs[j] - center);
      }
    }
    var meanG = 0.0;
    if (CENTERED == 1) { meanG = sumOf(at, t, total(sum)) / f32(p.c); }
    let slope = r * r * sumOf(at, t, total(product)) / f32(p.c);
    for (var k = 0u; k < batches; k++) {
      let i = k * LANES * KEPT + t.lane;
      if (k > 0) {
        fetchX(&xs, start, i);
        fetchG(&gs, start, i);
      }
      for (var j = 0u; j < KEPT; j++) {
        let c = i + j * LANES;
        if (c < p.vectors) { y[start + c] = y_v(r * (gs[j] - meanG - (xs[j] - center) * slope)); }
      }
    }
  }
}

/// The sum over threads that are COLUMNS apart, valid in the first of them.
fn sumOfColumns(lane: u32, v: value) -> value {
  columns[lane] = v;
  for (var count = LANES / 2; count >= COLUMNS; count /= 2) {
    workgroupBarrier();
    if (lane < count) { columns[lane] += columns[lane + count]; }
  }
  return columns[lane];
}

@compute @workgroup_size(LANES)
fn backward_gain(at: Grid, t: Thread) {
  let c = (at.group.x + at.group.y * at.groups.x) * COLUMNS + t.lane % COLUMNS;
  let column = min(c, p.vectors - 1);
  const ROWS = LANES / COLUMNS; // threads that share a column
  var sum = value();
  for (var n = t.lane / COLUMNS; n < p.n; n += ROWS * KEPT) {
    var xs: Batch;
    var gs: Batch;
    for (var j = 0u; j < KEPT; j++) {
      let row = min(n + j * ROWS, p.n - 1);
      xs[j] = value(x[row * p.vectors + column]) - centerOf(row);
      gs[j] = value(dy[row * p.vectors + column]) * rstdIn[row];
    }
    for (var j = 0u; j < KEPT; j++) { sum += select(value(), gs[j] * xs[j], n + j * ROWS < p.n); }
  }
  sum = sumOfColumns(t.lane, sum);
  // SUBGROUPS=1:
  if (t.lane < COLUMNS && c < p.vectors) {
    if (p.accumulate == 1) { sum += dgain[c]; }
    dgain[c] = sum;
  }
}
