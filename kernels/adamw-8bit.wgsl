// adamw8: one step of adamw.wgsl with 8-bit moments: m = map[mCode] · mMax of its block of 256, with the signed map, and v
//   likewise with the unsigned one. After the step both are scaled and rounded to the nearest entry again, ties to the lower.
//   A positive v is never rounded to 0: m / eps would be a step that f32 moments never make.
//   in maps: 256 entries with a sign, 256 without; g[N] gradScale[1]   in/out w[N], mCodes, vCodes: N bytes; mMax vMax[⌈N/256⌉]
//   grid: one workgroup of 64 threads per block, four neighbours per thread, whose codes share a word
//   numerics: f32 in between. Products and sums of moments are rounded separately: they pass through an integer that the
//   compiler cannot fold (zero is 0), since a fused multiply-add could change a code
//   source: Dettmers et al. 2022 (2110.02861), "8-bit optimizers via block-wise quantization"
requires immediate_address_space;

const LANES: u32 = 64;

alias g_t = f32;

struct Params {
  n: u32, lr: f32, beta1: f32, oneMinusBeta1: f32, beta2: f32, oneMinusBeta2: f32, eps: f32, decay: f32,
  correction1: f32, correction2: f32, hasScale: u32, zero: u32
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> w: array<f32>;
@group(0) @binding(1) var<storage, read_write> mCodes: array<u32>;
@group(0) @binding(2) var<storage, read_write> vCodes: array<u32>;
@group(0) @binding(3) var<storage, read_write> mMax: array<f32>;
@group(0) @binding(4) var<storage, read_write> vMax: array<f32>;
@group(0) @binding(5) var<storage, read> maps: array<f32>;
@group(0) @binding(6) var<storage, read> g: array<g_t>;
@group(0) @binding(7) var<storage, read> gradScale: array<f32>;

var<workgroup> largest: array<vec2<f32>, LANES>;

fn rounded(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ p.zero); }

/// How many midpoints between neighbouring entries of a map are below a value.
fn codeOf(scaled: f32, map: u32) -> u32 {
  var low = 0u;
  var high = 255u;
  while (low < high) {
    let at = (low + high) / 2;
    if (scaled > (maps[map + at] + maps[map + at + 1]) * 0.5) { low = at + 1; } else { high = at; }
  }
  return low;
}

fn scaledBy(x: f32, most: f32) -> f32 { return select(0.0, x / max(most, 1e-37), most > 0.0); }

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let block = wg.x + wg.y * nwg.x;
  let word = block * LANES + lane;
  let inside = word * 4 < p.n;
  let factor = select(1.0, gradScale[0], p.hasScale == 1u);
  var m = vec4<f32>();
  var v = vec4<f32>();
  for (var j = 0u; j < 4; j++) {
    let at = word * 4 + j;
    if (at >= p.n) { break; }
    let grad = rounded(f32(g[at]) * factor);
    let m0 = rounded(maps[extractBits(mCodes[word], j * 8, 8)] * mMax[block]);
    let v0 = rounded(maps[256 + extractBits(vCodes[word], j * 8, 8)] * vMax[block]);
    m[j] = rounded(p.beta1 * m0) + rounded(p.oneMinusBeta1 * grad);
    v[j] = rounded(p.beta2 * v0) + rounded(p.oneMinusBeta2 * rounded(grad * grad));
    let update = p.lr * (m[j] / p.correction1) / (sqrt(v[j] / p.correction2) + p.eps);
    w[at] -= p.decay * w[at] + update;
  }
  let a = abs(m);
  largest[lane] = vec2(max(max(a.x, a.y), max(a.z, a.w)), max(max(v.x, v.y), max(v.z, v.w)));
  for (var stride = LANES / 2; stride > 0; stride /= 2) {
    workgroupBarrier();
    if (lane < stride) { largest[lane] = max(largest[lane], largest[lane + stride]); }
  }
  workgroupBarrier();
  let most = largest[0];
  if (lane == 0 && inside) {
    mMax[block] = most.x;
    vMax[block] = most.y;
  }
  if (!inside) { return; }
  var codes = vec2<u32>();
  for (var j = 0u; j < 4; j++) {
    let vCode = max(codeOf(scaledBy(v[j], most.y), 256), u32(v[j] > 0.0));
    codes |= vec2(codeOf(scaledBy(m[j], most.x), 0), vCode) << vec2(j * 8);
  }
  mCodes[word] = codes.x;
  vCodes[word] = codes.y;
}
