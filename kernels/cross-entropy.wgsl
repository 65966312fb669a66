// row_losses: rowMax[firstRow + n] = max_v logits[n,v], logSum = log Σ_v exp(logits - rowMax); their sum is log Σ exp(logits),
//   nll = (rowMax - logits[target]) + logSum, 0 for ignored rows; with smoothing s the target's logit becomes
//   (1 - s) logits[target] + s mean_v logits; a target that is neither a class nor ignored makes nll and the row's gradient NaN
//   in logits[n,v] targets[N]   out rowMax[N] logSum[N] nll[N]   grid: one workgroup per `each` rows of logits
// mean_loss: loss = Σ nll / number of scored rows (1 when there are none)
//   in targets[N] nllIn[N]   out loss[1]   grid: one workgroup          count_scored: only that number
// logit_gradients: dlogits = (exp((logits - rowMax) - logSum) - (1 - s) onehot - s / V) · dloss / scored; ignored rows 0
//   in logits[n,v] targets[N] rowMaxIn[N] logSumIn[N] dloss[1] scoredIn[1]   out dlogits[n,v]; _in_place: over the logits
//   grid: `each` workgroups per row
//   Logits are stored in blocks of `block` columns, one [n, block] after the other, the last one narrower; with block = v they
//   are one matrix.
//   why: logits are read once: the running sum is rescaled when the maximum grows; each thread has KEPT loads in flight
//   numerics: f32 throughout; rowMax and logSum are two numbers, since in their sum large logits would round logSum away;
//   `firstRow` is the row of targets that belongs to logits row 0
enable subgroups;
// SUBGROUPS=0:
requires immediate_address_space;

const LANES: u32 = 64;
const KEPT: u32 = 4;
const WIDTH: u32 = 4; // elements of a vector: rows and blocks are multiples of it
const LOWEST = -3.4028234663852886e38; // not above any logit; finite, because WGSL may assume there are no infinities

alias logits_v = vec4<f32>;
// WIDTH=1: alias logits_v = f32;
alias dlogits_v = vec4<f32>;
// WIDTH=1: alias dlogits_v = f32;
alias value = vec4<f32>; // the type of intermediate values
// WIDTH=1: alias value = f32;
alias places = vec4<u32>;
// WIDTH=1: alias places = u32;
alias Batch = array<value, KEPT>; // vectors of a thread, LANES apart

struct Params { n: u32, v: u32, block: u32, each: u32, firstRow: u32, ignoreIndex: i32, hasUpstream: u32, smoothing: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> logits: array<logits_v>;
@group(0) @binding(1) var<storage, read> targets: array<i32>;
@group(0) @binding(2) var<storage, read_write> rowMax: array<f32>;
@group(0) @binding(3) var<storage, read_write> nll: array<f32>;
@group(0) @binding(4) var<storage, read> nllIn: array<f32>;
@group(0) @binding(5) var<storage, read_write> loss: array<f32>;
@group(0) @binding(6) var<storage, read_write> scored: array<f32>;
@group(0) @binding(7) var<storage, read> rowMaxIn: array<f32>;
@group(0) @binding(8) var<storage, read> dloss: array<f32>;
@group(0) @binding(9) var<storage, read> scoredIn: array<f32>;
@group(0) @binding(10) var<storage, read_write> dlogits: array<dlogits_v>;
@group(0) @binding(11) var<storage, read_write> logSum: array<f32>;
@group(0) @binding(12) var<storage, read> logSumIn: array<f32>;

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

/// Contiguous columns of a row of logits: `width` vectors from column `first` on, stored at vector `at`.
struct Part { first: u32, width: u32, at: u32 }

fn partOf(row: u32, first: u32) -> Part {
  let width = min(p.block, p.v - first);
  return Part(first, width / WIDTH, (first * p.n + row * width) / WIDTH);
}

/// logits[row, v].
fn logitAt(row: u32, v: u32) -> f32 {
  let part = partOf(row, v / p.block * p.block);
  let found = value(logits[part.at + (v - part.first) / WIDTH]);
  return found[(v - part.first) % WIDTH];
  // WIDTH=1: return found;
}

/// NaN; a constant expression may not be one.
fn noNumber() -> f32 { return bitcast<f32>(0x7fc00000 | p.hasUpstream); }

/// The batch that starts at vector `i` of such columns; LOWEST past their end.
fn fetch(kept: ptr<function, Batch>, part: Part, i: u32) {
  for (var j = 0u; j < KEPT; j++) {
    let at = i + j * LANES;
    kept[j] = select(value(LOWEST), value(logits[part.at + min(at, part.width - 1)]), at < part.width);
  }
}

/// Running statistics of a row: the maximum, Σ exp(logits - maximum), Σ (maximum - logits) and the count.
struct RowStats { largest: f32, sum: f32, below: f32, count: f32 }

fn accumulate(stats: ptr<function, RowStats>, row: u32, lane: u32) {
  for (var first = 0u; first < p.v; first += p.block) {
    let part = partOf(row, first);
    for (var from_ = 0u; from_ < part.width; from_ += LANES * KEPT) {
      var xs: Batch;
      fetch(&xs, part, from_ + lane);
      var newLargest = stats.largest;
      for (var j = 0u; j < KEPT; j++) { newLargest = max(newLargest, largestOf(xs[j])); }
      stats.sum *= shiftedOne(stats.largest, newLargest);
      for (var j = 0u; j < KEPT; j++) {
        let isIn = from_ + lane + j * LANES < part.width;
        stats.sum += select(0.0, total(shifted(xs[j], newLargest)), isIn);
      }
      if (p.smoothing > 0.0) {
        if (stats.count > 0.0) { stats.below += stats.count * (newLargest - stats.largest); }
        for (var j = 0u; j < KEPT; j++) {
          if (from_ + lane + j * LANES < part.width) {
            stats.below += total(newLargest - xs[j]);
            stats.count += f32(WIDTH);
          }
        }
      }
      stats.largest = newLargest;
    }
  }
}

@compute @workgroup_size(LANES)
fn row_losses(at: Grid, t: Thread) {
  let first = (at.group.x + at.group.y * at.groups.x) * p.each;
  for (var row = first; row < min(first + p.each, p.n); row++) {
    var stats = RowStats(LOWEST, 0.0, 0.0, 0.0);
    accumulate(&stats, row, t.lane);
    let largest = maxOf(at, t, stats.largest);
    let sum = sumOf(at, t, stats.sum * shiftedOne(stats.largest, largest));
    var below = 0.0; // mean of max - logits
    if (p.smoothing > 0.0) {
      if (stats.count > 0.0) { below = stats.below + stats.count * (largest - stats.largest); }
      below = sumOf(at, t, below) / f32(p.v);
    }
    if (t.lane == 0) {
      // (max - target) first: both may be large, their difference is exact or nearly so.
      let shift = log(sum);
      let target_ = targets[p.firstRow + row];
      rowMax[p.firstRow + row] = largest;
      logSum[p.firstRow + row] = shift;
      var loss_ = 0.0;
      if (target_ != p.ignoreIndex) {
        let isClass = u32(target_) < p.v;
        let targetBelow = largest - select(noNumber(), logitAt(row, min(u32(target_), p.v - 1)), isClass);
        loss_ = targetBelow + p.smoothing * (below - targetBelow) + shift;
      }
      nll[p.firstRow + row] = loss_;
    }
  }
}

fn countScored(at: Grid, t: Thread) -> f32 {
  var count = 0.0;
  for (var n = t.lane; n < p.n; n += LANES) { count += select(0.0, 1.0, targets[n] != p.ignoreIndex); }
  return max(1.0, sumOf(at, t, count));
}

@compute @workgroup_size(LANES)
fn mean_loss(at: Grid, t: Thread) {
  var sum = 0.0;
  for (var n = t.lane; n < p.n; n += LANES) { sum += nllIn[n]; }
  sum = sumOf(at, t, sum);
  let count = countScored(at, t);
  if (t.lane == 0) { loss[0] = sum / count; }
}

@compute @workgroup_size(LANES)
fn count_scored(at: Grid, t: Thread) {
  let count = countScored(at, t);
  if (t.lane == 0) { scored[0] = count; }
}

/// What the gradients of a row's logits have in common.
struct Row { target_: i32, max: f32, logSum: f32, factor: f32 }

fn rowAt(row: u32) -> Row {
  let upstream = select(1.0, dloss[0], p.hasUpstream == 1);
  let n = p.firstRow + row;
  let factor = select(noNumber(), upstream / scoredIn[0], u32(targets[n]) < p.v);
  return Row(targets[n], rowMaxIn[n], logSumIn[n], factor);
}

fn placesFrom(v: u32) -> places { return v + vec4(0, 1, 2, 3); }
// WIDTH=1: fn placesFrom(v: u32) -> places { return v; }

/// d loss / d logits from column v on; 0 for an ignored row.
fn gradient(found: value, v: u32, row: Row) -> value {
  let wanted = select(value(), value(1.0 - p.smoothing), placesFrom(v) == places(u32(row.target_))) + p.smoothing / f32(p.v);
  let result = (exp((found - row.max) - row.logSum) - wanted) * row.factor;
  return select(result, value(), row.target_ == p.ignoreIndex);
}

@compute @workgroup_size(LANES)
fn logit_gradients(at: Grid, t: Thread) {
  let group = at.group.x + at.group.y * at.groups.x;
  let row = group / p.each;
  if (row >= p.n) { return; }
  let shared_ = rowAt(row);
  for (var first = 0u; first < p.v; first += p.block) {
    let part = partOf(row, first);
    for (var i = group % p.each * LANES * KEPT + t.lane; i < part.width; i += p.each * LANES * KEPT) {
      var xs: Batch;
      fetch(&xs, part, i);
      for (var j = 0u; j < KEPT; j++) {
        let c = i + j * LANES;
        if (c < part.width) { dlogits[part.at + c] = dlogits_v(gradient(xs[j], first + c * WIDTH, shared_)); }
      }
    }
  }
}

@compute @workgroup_size(LANES)
fn logit_gradients_in_place(at: Grid, t: Thread) {
  let group = at.group.x + at.group.y * at.groups.x;
  let row = group / p.each;
  if (row >= p.n) { return; }
  let shared_ = rowAt(row);
  for (var first = 0u; first < p.v; first += p.block) {
    let part = partOf(row, first);
    for (var i = group % p.each * LANES * KEPT + t.lane; i < part.width; i += p.each * LANES * KEPT) {
      var xs: Batch;
      for (var j = 0u; j < KEPT; j++) { xs[j] = value(dlogits[part.at + min(i + j * LANES, part.width - 1)]); }
      for (var j = 0u; j < KEPT; j++) {
        let c = i + j * LANES;
        if (c < part.width) { dlogits[part.at + c] = dlogits_v(gradient(xs[j], first + c * WIDTH, shared_)); }
      }
    }
  }
}
