/**
 * Sampling of the next token from one row of logits (defined in ops/sampling.ts), in one task:
 *
 *     z = logits with the repetition penalty,  top = max z,  w = e^((z - top) / temperature)
 *     threshold = min z
 *     topK:  raise threshold as far as at least K elements have z >= threshold
 *     topP:  raise it further as far as those have at least the share topP of their weight
 *     minP:  raise it to top - depth at least
 *     id = the first v at which Σ w[..v], over z >= threshold, exceeds u · Σ w
 *
 * A threshold is found by bisection over the bits of floats, with one pass over the row for each bit, where sorting would take
 * longer than all of them.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, i32, i32x4, type V128, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { expOf } from "./math.ts";
import { at, forVectors, maximizer, maxLanes, splat, summer } from "./vectors.ts";

/** Elements whose weights are summed by themselves before they are added to the total: in one long float sum small weights get lost. */
const STRIDE = 256;

/** z = logits, with the penalty applied once to each recent id. */
function emitPenalties(
  f: FunctionBuilder,
  p: Record<"logits" | "z" | "recent" | "r" | "v", Local<"i32">>,
  penalty: Local<"f32">,
  inverse: Local<"f32">,
): void {
  f.copyBytes(p.z, p.logits, i32.mul(p.v, 4));
  f.for(0, p.r, 1, (i) => {
    const id = f.i32(i32.load(at(p.recent, i)));
    f.if(i32.ltU(id, p.v), () => {
      const value = f.f32(f32.load(at(p.logits, id)));
      const shrunk = f32.mul(value, f32.select(f32.gt(value, 0), inverse, penalty));
      f.do(f32.store(at(p.z, id), shrunk));
    });
  });
}

/**
 * Raises `threshold` (a float in all lanes) to the largest value up to `top` for which `holds`, by bisection over the floats
 * between the two. `holds` must be true at `threshold`, and false above any value at which it is false.
 */
function emitRaise(
  f: FunctionBuilder,
  threshold: Local<"v128">,
  top: Local<"v128">,
  holds: (candidate: Local<"v128">) => Expr<"i32">,
): void {
  /** Maps the bits of a float to a signed integer of the same order, and back. */
  const ordered = (bits: Expr<"i32">) => i32.xor(bits, i32.and(i32.shrS(bits, 31), 0x7fffffff));
  const order = (value: Local<"v128">) => {
    const bits = f.i32(i32x4.lane(value, 0));
    return f.i32(ordered(bits));
  };
  const [low, high] = [order(threshold), order(top)];
  const middle = f.i32();
  const candidate = f.v128();
  f.while(i32.ltS(low, high), () => {
    // The upper middle, without overflow. Invariant: low holds, and nothing above high does.
    const [half, odd] = [i32.add(i32.shrS(low, 1), i32.shrS(high, 1)), i32.and(i32.or(low, high), 1)];
    f.set(middle, i32.add(half, odd));
    f.set(candidate, i32x4.splat(ordered(middle)));
    f.if(
      holds(candidate),
      () => f.set(low, middle),
      () => f.set(high, i32.sub(middle, 1)),
    );
  });
  f.set(threshold, i32x4.splat(ordered(low)));
}

/** Returns an emitter of the sum of `value` over the pairs (z, w) of the row. */
function pairSummer(f: FunctionBuilder, { z, w, v }: Record<"z" | "w" | "v", Local<"i32">>) {
  const sumOf = summer(f);
  return (value: (z: V128, w: V128) => V128): Expr<"f32"> =>
    sumOf(v, [z, w], (sum, [z, w]) => f32x4.add(sum, value(z.load(), w.load())));
}

/** The first v at which the sum of weights over z >= threshold exceeds `goal`, or the last such v if rounding keeps the sum below. */
function emitDraw(
  f: FunctionBuilder,
  p: Record<"z" | "w" | "v", Local<"i32">>,
  threshold: Local<"v128">,
  goal: Local<"f32">,
): Local<"i32"> {
  const [mass, part, least] = [f.f32(0), f.f32(), f.f32(f32x4.lane(threshold, 0))];
  const [start, end, next, last, found] = [f.i32(), f.i32(), f.i32(), f.i32(), f.i32(-1)];
  const weightAt = (index: Local<"i32">) =>
    f32.select(f32.lt(f32.load(at(p.z, index)), least), 0, f32.load(at(p.w, index)));
  f.while(i32.and(i32.ltS(start, p.v), i32.ltS(found, 0)), () => {
    f.set(end, i32.min(f.i32(i32.add(start, STRIDE)), p.v));
    f.set(part, 0);
    f.for(start, end, 1, (v) => f.set(part, f32.add(part, weightAt(v))));
    f.if(f32.gt(part, 0), () => f.set(last, start));
    f.if(f32.gt(f32.add(mass, part), goal), () => {
      f.set(part, 0);
      f.set(next, start);
      f.while(i32.and(i32.ltS(next, end), i32.ltS(found, 0)), () => {
        f.set(part, f32.add(part, weightAt(next)));
        f.if(f32.gt(f32.add(mass, part), goal), () => f.set(found, next));
        f.set(next, i32.add(next, 1));
      });
    });
    f.if(i32.ltS(found, 0), () => {
      f.set(mass, f32.add(mass, part));
      f.set(start, end);
    });
  });
  f.if(i32.ltS(found, 0), () => {
    f.set(end, i32.min(f.i32(i32.add(last, STRIDE)), p.v));
    f.for(last, end, 1, (v) => f.if(f32.gt(weightAt(v), 0), () => f.set(found, v)));
  });
  return found;
}

/** The id for one row of logits. `inverseTemperature` 0 takes the first of the largest logits; `topK` 0 and `depth` below 0 set no such limit. */
export const sampleRow = defineKernel(
  {
    ...words("logits", "recent", "z", "w", "id", "v", "r", "topK"),
    topP: "f32",
    depth: "f32",
    inverseTemperature: "f32",
    penalty: "f32",
    inversePenalty: "f32",
    u: "f32",
  } as const,
  (f, p) => {
    emitPenalties(f, p, p.penalty, p.inversePenalty);
    const best = f.v128(v128.load32Splat(p.z));
    const largest = maximizer(f)(p.v, [p.z], ([z]) => z.load(), best);
    const top = splat(f, largest);
    const [scale, one] = [splat(f, p.inverseTemperature), splat(f, 1)];
    const exp = expOf(f);
    const sum = pairSummer(f, p);
    // At temperature 0 only the largest logits are kept, and the first of them is drawn.
    const threshold = f.v128(top);
    f.if(
      f32.gt(p.inverseTemperature, 0),
      () => {
        f.set(best, top);
        forVectors(f, p.v, [p.z, p.w], ([z, w]) => {
          const value = f.v128(z.load());
          f.set(best, f32x4.pmin(best, value));
          w.store(exp(f32x4.mul(f32x4.sub(value, top), scale)));
        });
        f.set(threshold, f32x4.neg(f32x4.splat(maxLanes(f, [f.v128(f32x4.neg(best))]))));
        f.if(p.topK, () => {
          const wanted = f.f32(f32.convert(p.topK)); // counts are exact up to 2^24, more than a vocabulary has
          const keptCount = (least: V128) => sum((z) => v128.and(f32x4.ge(z, least), one));
          emitRaise(f, threshold, top, (least) => f32.ge(keptCount(least), wanted));
        });
        const keptWeight = (least: Local<"v128">) => sum((z, w) => v128.and(f32x4.ge(z, least), w));
        f.if(f32.lt(p.topP, 1), () => {
          const wanted = f.f32(f32.mul(p.topP, keptWeight(threshold)));
          emitRaise(f, threshold, top, (least) => f32.ge(keptWeight(least), wanted));
        });
        f.if(f32.ge(p.depth, 0), () => {
          f.set(threshold, f32x4.max(threshold, f32x4.sub(top, f32x4.splat(p.depth))));
        });
      },
      () => forVectors(f, p.v, [p.w], ([w]) => w.store(one)),
    );
    const kept = sum((z, w) => v128.and(f32x4.ge(z, threshold), w));
    const goal = f.f32(f32.mul(p.u, kept));
    f.if(f32.eq(p.inverseTemperature, 0), () => f.set(goal, 0));
    f.do(i32.store(p.id, emitDraw(f, p, threshold, goal)));
  },
);
