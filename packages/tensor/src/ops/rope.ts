import { EPS } from "../dtype.ts";
import { defineOp } from "../op.ts";
import { type DeviceProfile, hasEightLanes } from "../profile.ts";

/**
 * Which heads of a position a thread processes, and how many at once. On a software driver, where every workgroup has a cost, it
 * processes all of them one after the other.
 */
function groupsOf(profile: DeviceProfile, heads: number, pairs: number) {
  const WIDTH = pairs % 4 === 0 ? 4 : 1;
  const half = pairs / WIDTH;
  if (hasEightLanes(profile)) {
    return { consts: { LANES: 8, HEADS: 1, WIDTH }, parts: 1, rounds: heads, half };
  }
  const HEADS = heads > 2 ? 4 : 1;
  return { consts: { LANES: 64, HEADS, WIDTH }, parts: Math.ceil(heads / HEADS), rounds: 1, half };
}

export const rope = defineOp({
  name: "rope",
  doc:
    "rotates element i and i + D/2 of each head by the angle of its position, rotate-half layout (methods.md, 1); " +
    "inverse rotates back, which is the gradient; cos and sin must each fit one binding",
  sig: "x[B..,T,H,D] cos:f32[T,P] sin:f32[T,P] -> y[B..,T,H,D]",
  attrs: { inverse: false },
  check: ({ D, P }) =>
    2 * P === D ? null : `cos and sin hold ${P} angles a position, head size D=${D} wants D/2`,
  reference({ x, cos, sin, y }, { B, T, H, D, P }, { inverse }) {
    for (let b = 0; b < B; b++) {
      for (let t = 0; t < T; t++) {
        for (let h = 0; h < H; h++) {
          const at = ((b * T + t) * H + h) * D;
          for (let i = 0; i < P; i++) {
            const c = cos[t * P + i];
            const s = inverse ? -sin[t * P + i] : sin[t * P + i];
            y[at + i] = x[at + i] * c - x[at + P + i] * s;
            y[at + P + i] = x[at + P + i] * c + x[at + i] * s;
          }
        }
      }
    }
  },
  kernel(k, { x, cos, sin, y }, { B, T, H, P }, { inverse }) {
    if (x.size === 0) return;
    const { consts, parts, rounds, half } = groupsOf(k.profile, H, P);
    const direction = inverse ? -1 : 1;
    k.split(1, [cos, sin]); // throws if they do not fit a binding
    for (const range of k.split(B * T, [x, y])) {
      const threads = range.count * parts * half;
      const [from, to] = [x, y].map((tensor) => k.rows(tensor, B * T, range));
      k.run("rope/main", {
        bind: { x: from, cos, sin, y: to },
        params: { threads, t: T, first: range.start % T, h: H, half, parts, rounds, direction },
        grid: Math.ceil(threads / consts.LANES),
        consts,
      });
    }
  },
  draw: (pick) => {
    const P = pick.int(1, 10) * pick.oneOf([1, 4]);
    const dims = { B: pick.shape(4, 2), T: pick.int(1, 20), H: pick.int(1, 5), D: 2 * P, P };
    return { dims, attrs: { inverse: pick.chance(0.5) } };
  },
  close: { rel: 4 * EPS }, // two products and a sum
  flops: ({ B, T, H, D }) => 3 * B * T * H * D,
});
