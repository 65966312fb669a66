// uniform: y[i] = u[i]   normal: y[i] = scale · normal number i   dropout: y[i] = u[i] < scale ? 0 : x[i] / (1 - scale)
// with u[i] = (r / 2^9 + 1/2) / 2^23, r the word i of Philox 4x32-10 under (seed, stream), that of tensor/src/random.ts
//   in x[N] (dropout)   out y[N]   grid: one workgroup per LANES vectors of four, one Philox block per vector; the last
//   may reach into the padding of the storage
//   numerics: u is exact, in (0, 1), and the same on every device: 23 bits plus 1/2 fit an f32. Normal numbers come from the
//   Box-Muller transform of words 2k and 2k + 1, with logarithm and cosine computed here, since WGSL's may be off by 2^-11;
//   devices differ only in the last bits
//   source: Salmon et al. 2011
requires immediate_address_space;

const LANES: u32 = 64;

alias x_v = vec4<f32>;
alias y_v = vec4<f32>;

struct Params { vectors: u32, firstBlock: u32, seed: u32, stream: u32, scale: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<x_v>;
@group(0) @binding(1) var<storage, read_write> y: array<y_v>;

/// The upper 32 bits of a product; WGSL has no 64-bit integers.
fn mulHigh(a: u32, b: u32) -> u32 {
  let a0 = a & 0xffff;
  let a1 = a >> 16;
  let b0 = b & 0xffff;
  let b1 = b >> 16;
  let middle = a1 * b0 + ((a0 * b0) >> 16);
  let carry = (middle & 0xffff) + a0 * b1;
  return a1 * b1 + (middle >> 16) + (carry >> 16);
}

fn philox(block: u32) -> vec4<u32> {
  var c = vec4(block, 0, p.stream, 0);
  var key = vec2(p.seed, 0);
  for (var round = 0; round < 10; round++) {
    c = vec4(mulHigh(0xcd9e8d57u, c.z) ^ c.y ^ key.x, 0xcd9e8d57u * c.z,
             mulHigh(0xd2511f53u, c.x) ^ c.w ^ key.y, 0xd2511f53u * c.x);
    key += vec2(0x9e3779b9u, 0xbb67ae85u);
  }
  return c;
}

fn uniforms(block: u32) -> vec4<f32> { return (vec4<f32>(philox(block) >> vec4(9)) + 0.5) * 0x1p-23; }

/// ln u for u in (0, 1): u = m · 2^e with m near 1, and ln m = 2 artanh((m - 1) / (m + 1)).
fn logOf(u: f32) -> f32 {
  let bits = bitcast<i32>(u);
  let e = (bits - 0x3f3504f3) >> 23; // m from √½ to √2
  let m = bitcast<f32>(bits - (e << 23));
  let s = (m - 1.0) / (m + 1.0);
  let z = s * s;
  let series = z * (1.0 / 3.0 + z * (0.2 + z * (1.0 / 7.0 + z * (1.0 / 9.0))));
  return f32(e) * 0.6931471805599453 + 2.0 * (s + s * series);
}

/// (cos, sin) of 2π u: reduced to a quarter of the circle, then Taylor series on at most an eighth.
fn circle(u: f32) -> vec2<f32> {
  let quarter = floor(u * 4.0 + 0.5);
  let t = (u * 4.0 - quarter) * 1.5707963267948966;
  let z = t * t;
  let c = 1.0 + z * (-0.5 + z * (1.0 / 24.0 + z * (-1.0 / 720.0 + z * (1.0 / 40320.0))));
  let s = t + t * z * (-1.0 / 6.0 + z * (1.0 / 120.0 + z * (-1.0 / 5040.0 + z * (1.0 / 362880.0))));
  let q = u32(quarter) % 4;
  let turned = select(vec2(c, s), vec2(-s, c), q % 2 == 1);
  return select(turned, -turned, q >= 2);
}

fn vectorOf(wg: vec3<u32>, nwg: vec3<u32>, lane: u32) -> u32 { return (wg.x + wg.y * nwg.x) * LANES + lane; }

@compute @workgroup_size(LANES)
fn uniform_numbers(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
                   @builtin(local_invocation_index) lane: u32) {
  let i = vectorOf(wg, nwg, lane);
  if (i < p.vectors) { y[i] = y_v(uniforms(p.firstBlock + i)); }
}

@compute @workgroup_size(LANES)
fn normal_numbers(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
                  @builtin(local_invocation_index) lane: u32) {
  let i = vectorOf(wg, nwg, lane);
  if (i >= p.vectors) { return; }
  let u = uniforms(p.firstBlock + i);
  let first = sqrt(-2.0 * logOf(u.x)) * circle(u.y);
  let second = sqrt(-2.0 * logOf(u.z)) * circle(u.w);
  y[i] = y_v(p.scale * vec4(first, second));
}

@compute @workgroup_size(LANES)
fn dropout(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
  let i = vectorOf(wg, nwg, lane);
  if (i >= p.vectors) { return; }
  let kept = vec4<f32>(x[i]) / (1.0 - p.scale);
  y[i] = y_v(select(kept, vec4(0.0), uniforms(p.firstBlock + i) < vec4(p.scale)));
}
