// forward: y[n] = table[ids[firstToken + n]], for ids within rows first .. first + count, the bound window of a table of v rows
//   in ids[N] table[count,C]   out y[N,C]   grid: one workgroup per n; the first window of the table writes
//   zeros where the id is in no window
// backward: dtable[v] = Σ dy[n] over n with ids[firstToken + n] = v
//   in ids[N] dy[N,C]   out dtable[count,C]   grid: one workgroup per table row; later windows of dy add
//   numerics: terms are added in order of n, so results are the same on every run; every row is written
requires immediate_address_space;

const LANES: u32 = 64;

alias table_t = f32;
alias y_t = f32;
alias dy_t = f32;

struct Params { n: u32, firstToken: u32, c: u32, first: u32, count: u32, v: u32, isFirst: u32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> ids: array<i32>;
@group(0) @binding(1) var<storage, read> table: array<table_t>;
@group(0) @binding(2) var<storage, read_write> y: array<y_t>;
@group(0) @binding(3) var<storage, read> dy: array<dy_t>;
@group(0) @binding(4) var<storage, read_write> dtable: array<f32>;

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let n = wg.x + wg.y * nwg.x;
  if (n >= p.n) { return; }
  let id = u32(ids[p.firstToken + n]); // a negative id becomes a large one
  if (id >= p.first && id - p.first < p.count) {
    for (var c = lane; c < p.c; c += LANES) { y[n * p.c + c] = y_t(table[(id - p.first) * p.c + c]); }
  } else if (id >= p.v && p.isFirst == 1u) {
    for (var c = lane; c < p.c; c += LANES) { y[n * p.c + c] = y_t(0.0); }
  }
}

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let row = wg.x + wg.y * nwg.x;
  if (row >= p.count) { return; }
  for (var c = lane; c < p.c; c += LANES) {
    var sum = 0.0;
    if (p.isFirst == 0u) { sum = dtable[row * p.c + c]; }
    for (var n = 0u; n < p.n; n++) {
      if (u32(ids[p.firstToken + n]) == p.first + row) { sum += f32(dy[n * p.c + c]); }
    }
    dtable[row * p.c + c] = sum;
  }
}
