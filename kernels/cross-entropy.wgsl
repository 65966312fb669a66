// row_losses: rowMax[firstRow + n] = max_v logits[n,v], logSum = log Σ_v exp(logits - rowMax); their sum is log Σ exp(logits),
//   nll = (rowMax - logits[target]) + logSum, 0 for ignored rows; with smoothing s the target's logit becomes
//   (1 - s) logits[target] + s mean_v logits
//   in logits[n,v] targets[N]   out rowMax[N] logSum[N] nll[N]   grid: one workgroup per row of logits
// mean_loss: loss = Σ nll / number of scored rows (1 when there are none)
//   in targets[N] nllIn[N]   out loss[1]   grid: one workgroup          count_scored: that number alone
// logit_gradients: dlogits = (exp((logits - rowMax) - logSum) - (1 - s) onehot - s / V) · dloss / scored; ignored rows 0
//   in logits[n,v] targets[N] rowMaxIn[N] logSumIn[N] dloss[1] scoredIn[1]   out dlogits[n,v]; _in_place: over the logits
//   grid: one workgroup per row
//   Logits lie in blocks of `block` columns, one [n, block] after the other and the last one narrower; block = v: as usual.
//   numerics: f32 throughout; rowMax and logSum stay apart, since large logits would round logSum away in their sum;
//   `firstRow` is the row of targets that belongs to logits row 0
requires immediate_address_space;

const LANES: u32 = 64;
const LOWEST = -3.0e38; // below any logit; finite, because WGSL may assume there are no infinities

alias logits_t = f32;
alias dlogits_t = f32;

struct Params { n: u32, v: u32, block: u32, firstRow: u32, ignoreIndex: i32, hasUpstream: u32, smoothing: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> logits: array<logits_t>;
@group(0) @binding(1) var<storage, read> targets: array<i32>;
@group(0) @binding(2) var<storage, read_write> rowMax: array<f32>;
@group(0) @binding(3) var<storage, read_write> nll: array<f32>;
@group(0) @binding(4) var<storage, read> nllIn: array<f32>;
@group(0) @binding(5) var<storage, read_write> loss: array<f32>;
@group(0) @binding(6) var<storage, read_write> scored: array<f32>;
@group(0) @binding(7) var<storage, read> rowMaxIn: array<f32>;
@group(0) @binding(8) var<storage, read> dloss: array<f32>;
@group(0) @binding(9) var<storage, read> scoredIn: array<f32>;
@group(0) @binding(10) var<storage, read_write> dlogits: array<dlogits_t>;
@group(0) @binding(11) var<storage, read_write> logSum: array<f32>;
@group(0) @binding(12) var<storage, read> logSumIn: array<f32>;

var<workgroup> partial: array<f32, LANES>;

fn reduceSum(lane: u32, value: f32) -> f32 {
  partial[lane] = value;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { partial[lane] += partial[lane + stride]; }
    workgroupBarrier();
  }
  let total = partial[0];
  workgroupBarrier();
  return total;
}

fn reduceMax(lane: u32, value: f32) -> f32 {
  partial[lane] = value;
  workgroupBarrier();
  for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
    if (lane < stride) { partial[lane] = max(partial[lane], partial[lane + stride]); }
    workgroupBarrier();
  }
  let largest = partial[0];
  workgroupBarrier();
  return largest;
}

/// Some columns of a row of logits, which lie side by side: `width` of them from column `first` on, at `at`.
struct Part { first: u32, width: u32, at: u32 }

fn partOf(row: u32, first: u32) -> Part {
  let width = min(p.block, p.v - first);
  return Part(first, width, first * p.n + row * width);
}

/// Where a logit lies.
fn placeOf(row: u32, v: u32) -> u32 {
  let part = partOf(row, v / p.block * p.block);
  return part.at + v - part.first;
}

@compute @workgroup_size(LANES)
fn row_losses(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  var largest = LOWEST;
  for (var first = 0u; first < p.v; first += p.block) {
    let part = partOf(row, first);
    for (var i = lane; i < part.width; i += LANES) { largest = max(largest, f32(logits[part.at + i])); }
  }
  largest = reduceMax(lane, largest);
  var sum = 0.0;
  for (var first = 0u; first < p.v; first += p.block) {
    let part = partOf(row, first);
    for (var i = lane; i < part.width; i += LANES) { sum += exp(f32(logits[part.at + i]) - largest); }
  }
  sum = reduceSum(lane, sum);
  var below = 0.0; // mean of max - logits
  if (p.smoothing > 0.0) {
    for (var first = 0u; first < p.v; first += p.block) {
      let part = partOf(row, first);
      for (var i = lane; i < part.width; i += LANES) { below += largest - f32(logits[part.at + i]); }
    }
    below = reduceSum(lane, below) / f32(p.v);
  }
  if (lane == 0u) {
    // (max - target) first: both may be large, their difference is exact or nearly so.
    let shifted = log(sum);
    let target_ = targets[p.firstRow + row];
    rowMax[p.firstRow + row] = largest;
    logSum[p.firstRow + row] = shifted;
    var value = 0.0;
    if (target_ != p.ignoreIndex) {
      let targetBelow = largest - f32(logits[placeOf(row, u32(target_))]);
      value = targetBelow + p.smoothing * (below - targetBelow) + shifted;
    }
    nll[p.firstRow + row] = value;
  }
}

fn countScored(lane: u32) -> f32 {
  var count = 0.0;
  for (var n = lane; n < p.n; n += LANES) { count += select(0.0, 1.0, targets[n] != p.ignoreIndex); }
  return max(1.0, reduceSum(lane, count));
}

@compute @workgroup_size(LANES)
fn mean_loss(@builtin(local_invocation_index) lane: u32) {
  var sum = 0.0;
  for (var n = lane; n < p.n; n += LANES) { sum += nllIn[n]; }
  sum = reduceSum(lane, sum);
  let count = countScored(lane);
  if (lane == 0u) { loss[0] = sum / count; }
}

@compute @workgroup_size(LANES)
fn count_scored(@builtin(local_invocation_index) lane: u32) {
  let count = countScored(lane);
  if (lane == 0u) { scored[0] = count; }
}

/// d loss / d logits[row, v] for a logit, 0 for an ignored row.
fn gradient(logit: f32, v: u32, row: u32) -> f32 {
  let target_ = targets[p.firstRow + row];
  if (target_ == p.ignoreIndex) { return 0.0; }
  let upstream = select(1.0, dloss[0], p.hasUpstream == 1u);
  let shifted = (logit - rowMaxIn[p.firstRow + row]) - logSumIn[p.firstRow + row];
  let wanted = select(0.0, 1.0 - p.smoothing, v == u32(target_)) + p.smoothing / f32(p.v);
  return (exp(shifted) - wanted) * upstream / scoredIn[0];
}

@compute @workgroup_size(LANES)
fn logit_gradients(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  for (var first = 0u; first < p.v; first += p.block) {
    let part = partOf(row, first);
    for (var i = lane; i < part.width; i += LANES) {
      dlogits[part.at + i] = dlogits_t(gradient(f32(logits[part.at + i]), part.first + i, row));
    }
  }
}

@compute @workgroup_size(LANES)
fn logit_gradients_in_place(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.n) { return; }
  for (var first = 0u; first < p.v; first += p.block) {
    let part = partOf(row, first);
    for (var i = lane; i < part.width; i += LANES) {
      dlogits[part.at + i] = dlogits_t(gradient(f32(dlogits[part.at + i]), part.first + i, row));
    }
  }
}
