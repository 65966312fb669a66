import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { float32, signed, unsigned } from "../../src/wasm/assembler/encode.ts";
import type { FunctionBuilder } from "../../src/wasm/assembler/function.ts";
import { f32x4, i16x8, i32, i32x4, type V128, v128 } from "../../src/wasm/assembler/instructions.ts";
import { ModuleBuilder } from "../../src/wasm/assembler/module.ts";
import { engine, type Memory } from "../../src/wasm/engine.ts";
import { hasRelaxedSimd, hasSimd } from "../../src/wasm/open.ts";

/** Runs code over a memory of its own: three addresses 64 bytes apart come as parameters. */
async function runCode(
  memory: Memory,
  emit: (f: FunctionBuilder) => void,
  paramCount = 3,
  ...args: number[]
): Promise<void> {
  const m = new ModuleBuilder({ shared: false, relaxedSimd: false });
  m.function(paramCount, emit, "main");
  const module = await engine.compile(m.finish([]));
  const { exports } = new engine.Instance(module, { env: { memory } });
  (exports.main as (...args: number[]) => void)(...args);
}

const newMemory = () => new engine.Memory({ initial: 1, maximum: 65536, shared: false });
const [A, B, OUT] = [64, 128, 192];

describe("numbers in the binary format", () => {
  it("are read back as they were written", () => {
    const read = (bytes: number[], isSigned: boolean) => {
      let value = 0n;
      for (const [i, byte] of bytes.entries()) value |= BigInt(byte & 0x7f) << BigInt(7 * i);
      const bits = 7 * bytes.length;
      return Number(isSigned ? BigInt.asIntN(bits, value) : value);
    };
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.integer(), (u, s) => {
        expect(read(unsigned(u), false)).toBe(u);
        expect(read(signed(s), true)).toBe(s);
        expect(unsigned(u).every((byte, i, all) => ((byte & 0x80) !== 0) === i < all.length - 1)).toBe(true);
      }),
    );
    expect(read(signed(2 ** 31), true)).toBe(-(2 ** 31)); // an address past 2 GiB
    expect(float32(1)).toEqual([0, 0, 0x80, 0x3f]);
  });
});

/** What an instruction computes, in JavaScript; on 32-bit words or floats. */
const I32: Record<
  string,
  [(a: number, b: number) => ReturnType<typeof i32.add>, (a: number, b: number) => number]
> = {
  add: [i32.add, (a, b) => a + b],
  sub: [i32.sub, (a, b) => a - b],
  mul: [i32.mul, Math.imul],
  divU: [i32.divU, (a, b) => Math.floor((a >>> 0) / (b >>> 0))],
  remU: [i32.remU, (a, b) => (a >>> 0) % (b >>> 0)],
  and: [i32.and, (a, b) => a & b],
  or: [i32.or, (a, b) => a | b],
  shl: [i32.shl, (a, b) => a << b],
  shrU: [i32.shrU, (a, b) => a >>> b],
  eq: [i32.eq, (a, b) => Number(a === b)],
  ne: [i32.ne, (a, b) => Number(a !== b)],
  ltS: [i32.ltS, (a, b) => Number(a < b)],
  ltU: [i32.ltU, (a, b) => Number(a >>> 0 < b >>> 0)],
  gtS: [i32.gtS, (a, b) => Number(a > b)],
  leS: [i32.leS, (a, b) => Number(a <= b)],
  geS: [i32.geS, (a, b) => Number(a >= b)],
};

const F32X4: Record<string, [(a: V128, b: V128) => V128, (a: number, b: number) => number]> = {
  add: [f32x4.add, (a, b) => a + b],
  sub: [f32x4.sub, (a, b) => a - b],
  mul: [f32x4.mul, (a, b) => a * b],
  div: [f32x4.div, (a, b) => a / b],
  min: [f32x4.min, Math.min],
  max: [f32x4.max, Math.max],
  pmin: [f32x4.pmin, (a, b) => (b < a ? b : a)],
  pmax: [f32x4.pmax, (a, b) => (a < b ? b : a)],
  abs: [f32x4.abs, Math.abs],
  neg: [f32x4.neg, (a) => -a],
  sqrt: [(a) => f32x4.sqrt(f32x4.abs(a)), (a) => Math.sqrt(Math.abs(a))],
};

const I32X4: Record<string, [(a: V128, b: V128) => V128, (a: number, b: number) => number]> = {
  add: [i32x4.add, (a, b) => a + b],
  sub: [i32x4.sub, (a, b) => a - b],
  eq: [i32x4.eq, (a, b) => -Number(a === b)],
  gtS: [i32x4.gtS, (a, b) => -Number(a > b)],
  minS: [i32x4.minS, Math.min],
  and: [v128.and, (a, b) => a & b],
  andNot: [v128.andNot, (a, b) => a & ~b],
  or: [v128.or, (a, b) => a | b],
  xor: [v128.xor, (a, b) => a ^ b],
  shl: [(a) => i32x4.shl(a, 5), (a) => a << 5],
  shrS: [(a) => i32x4.shrS(a, 5), (a) => a >> 5],
  shrU: [(a) => i32x4.shrU(a, 5), (a) => a >>> 5],
};

describe("instructions", () => {
  it.each(Object.entries(I32))("i32.%s", async (_, [emit, want]) => {
    const pairs = [
      [7, 3],
      [-7, 3],
      [3, -7],
      [5, 5],
      [-(2 ** 31), 31],
      [2 ** 31 - 1, 1],
      [0, 1],
    ];
    for (const [a, b] of pairs) {
      const memory = newMemory();
      await runCode(memory, (f) => f.do(i32.store(OUT, emit(a, b))));
      expect(new Int32Array(memory.buffer)[OUT / 4]).toBe(want(a, b) | 0);
    }
  });

  const pairwise = async (
    emit: (a: V128, b: V128) => V128,
    [a, b]: readonly [ArrayLike<number>, ArrayLike<number>],
    View: typeof Float32Array | typeof Int32Array,
  ) => {
    const memory = newMemory();
    const view = new View(memory.buffer as ArrayBuffer);
    view.set(a, A / 4);
    view.set(b, B / 4);
    await runCode(memory, (f) => f.do(v128.store(OUT, emit(v128.load(A), v128.load(B)))));
    return [...view.subarray(OUT / 4, OUT / 4 + 4)];
  };

  it.each(Object.entries(F32X4))("f32x4.%s", async (_, [emit, want]) => {
    const [a, b] = [Float32Array.of(1.5, -2.25, 1e30, -0.1), Float32Array.of(-3, 7, 1e-3, -0.1)];
    const expected = Float32Array.from(a, (x, i) => want(x, b[i]));
    expect(await pairwise(emit, [a, b], Float32Array)).toEqual([...expected]);
  });

  it.each(Object.entries(I32X4))("i32x4.%s", async (_, [emit, want]) => {
    const [a, b] = [Int32Array.of(7, -7, 2 ** 31 - 1, 0), Int32Array.of(3, -7, 1, -1)];
    const expected = Int32Array.from(a, (x, i) => want(x, b[i]));
    expect(await pairwise(emit, [a, b], Int32Array)).toEqual([...expected]);
  });

  it("move lanes, bytes and halves", async () => {
    const [a, b] = [Int32Array.of(1, 2, 3, 4), Int32Array.of(5, 6, 70000, -8)];
    const run = (emit: (a: V128, b: V128) => V128) => pairwise(emit, [a, b], Int32Array);
    expect(await run((x, y) => v128.shuffle(x, y, [0, 4, 3, 7]))).toEqual([1, 5, 4, -8]);
    expect(await run((x, y) => v128.bitselect(x, y, v128.constant([-1, 0, -1, 0])))).toEqual([1, 6, 3, -8]);
    expect(await run((x, y) => i16x8.narrowU(x, y))).toEqual([
      2 * 65536 + 1,
      4 * 65536 + 3,
      6 * 65536 + 5,
      65535,
    ]);
    expect(await run((x) => i32x4.splat(i32x4.lane(x, 2)))).toEqual([3, 3, 3, 3]);
    expect(await run((_, y) => i32x4.splat(v128.anyTrue(i32x4.eq(y, i32x4.splat(6)))))).toEqual([1, 1, 1, 1]);
    expect(await run(() => v128.load16x4S(B + 8))).toEqual([70000 - 65536, 1, -8, -1]);
  });
});

describe("statements", () => {
  it("loop, branch and call as they read", async () => {
    const memory = newMemory();
    await runCode(
      memory,
      (f) => {
        const [count] = f.params;
        const [sum, rounds] = [f.i32(), f.i32()];
        f.for(0, count, 3, (i) => f.set(sum, i32.add(sum, i)));
        f.do(i32.store(OUT, sum));
        f.forever((stop) => {
          stop(i32.geS(rounds, 4));
          f.set(rounds, i32.add(rounds, 1));
        });
        f.do(i32.store(OUT, rounds, 4));
        f.if(
          i32.gtS(count, 100),
          () => f.do(i32.store(OUT, 1, 8)),
          () => f.do(i32.store(OUT, 2, 8)),
        );
        f.copyBytes(OUT + 12, OUT, 4);
        f.zeroBytes(OUT, 1);
      },
      1,
      10,
    );
    expect([...new Int32Array(memory.buffer).subarray(OUT / 4, OUT / 4 + 4)]).toEqual([0, 4, 2, 18]);
  });

  it("reach functions through the table", async () => {
    const memory = newMemory();
    const m = new ModuleBuilder({ shared: false, relaxedSimd: false });
    const [one, two] = [1, 2].map((value) => m.function(1, (f) => f.do(i32.store(f.params[0], value))));
    m.function(1, (f) => f.callIndirect(f.params[0], ModuleBuilder.typeOf(1), OUT), "main");
    const { exports } = new engine.Instance(await engine.compile(m.finish([one, two])), { env: { memory } });
    for (const entry of [0, 1]) {
      (exports.main as (entry: number) => void)(entry);
      expect(new Int32Array(memory.buffer)[OUT / 4]).toBe(entry + 1);
    }
  });
});

it("the engine is asked what it has, by modules that use it", () => {
  expect(hasSimd()).toBe(true);
  expect(typeof hasRelaxedSimd()).toBe("boolean");
  expect(engine.validate(Uint8Array.of(0, 0x61, 0x73, 0x6d, 2, 0, 0, 0))).toBe(false); // it does refuse
});
