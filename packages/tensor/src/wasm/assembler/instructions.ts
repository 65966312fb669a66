/**
 * WebAssembly instructions as typed expressions: `f32x4.add(x, y)` is code that leaves a vector on the stack, and TypeScript
 * rejects an operand of another type. A plain number stands for an i32 or f32 constant.
 *
 * Opcodes: WebAssembly 2.0 with SIMD and threads, and `f32x4.relaxed_madd` of the relaxed-SIMD proposal.
 */
import { float32, signed, unsigned } from "./encode.ts";

export type ValueType = "i32" | "f32" | "v128";

/** Code that leaves one value on the stack. */
export interface Expr<T extends ValueType> {
  readonly type: T;
  readonly code: readonly number[];
}
/** Code that leaves nothing. */
export interface Statement {
  readonly code: readonly number[];
}

export type I32 = Expr<"i32"> | number;
export type F32 = Expr<"f32"> | number;
export type V128 = Expr<"v128">;

const SIMD = 0xfd;
const ATOMIC = 0xfe;

const codeOfI32 = (value: I32): readonly number[] =>
  typeof value === "number" ? [0x41, ...signed(value)] : value.code;
const codeOfF32 = (value: F32): readonly number[] =>
  typeof value === "number" ? [0x43, ...float32(value)] : value.code;

/** The code of an operand; a plain number becomes a constant of the type. */
export function codeOf(value: I32 | F32 | V128, type: ValueType): readonly number[] {
  if (typeof value !== "number") return value.code;
  return type === "f32" ? codeOfF32(value) : codeOfI32(value);
}

const toI32 = (code: readonly number[]): Expr<"i32"> => ({ type: "i32", code });
const toF32 = (code: readonly number[]): Expr<"f32"> => ({ type: "f32", code });
const toV128 = (code: readonly number[]): V128 => ({ type: "v128", code });

const i32Binary = (opcode: number) => (a: I32, b: I32) => toI32([...codeOfI32(a), ...codeOfI32(b), opcode]);
const f32Binary = (opcode: number) => (a: F32, b: F32) => toF32([...codeOfF32(a), ...codeOfF32(b), opcode]);
const f32Compare = (opcode: number) => (a: F32, b: F32) => toI32([...codeOfF32(a), ...codeOfF32(b), opcode]);

/** The immediates of a memory access: alignment hint (log2 of bytes) and offset. */
const at = (alignment: number, offset: number): number[] => [alignment, ...unsigned(offset)];

const i32Load = (opcode: number, alignment: number) =>
  function load(address: I32, offset = 0) {
    return toI32([...codeOfI32(address), opcode, ...at(alignment, offset)]);
  };

export const i32 = {
  add: i32Binary(0x6a),
  sub: i32Binary(0x6b),
  mul: i32Binary(0x6c),
  divU: i32Binary(0x6e),
  remU: i32Binary(0x70),
  and: i32Binary(0x71),
  or: i32Binary(0x72),
  shl: i32Binary(0x74),
  xor: i32Binary(0x73),
  shrS: i32Binary(0x75),
  shrU: i32Binary(0x76),
  eq: i32Binary(0x46),
  ne: i32Binary(0x47),
  ltS: i32Binary(0x48),
  ltU: i32Binary(0x49),
  gtS: i32Binary(0x4a),
  leS: i32Binary(0x4c),
  geS: i32Binary(0x4e),
  eqz: (a: I32) => toI32([...codeOfI32(a), 0x45]),
  load: i32Load(0x28, 2),
  load8U: i32Load(0x2d, 0),
  load16U: i32Load(0x2f, 1),
  store8: (address: I32, value: I32, offset = 0): Statement => ({
    code: [...codeOfI32(address), ...codeOfI32(value), 0x3a, ...at(0, offset)],
  }),
  store16: (address: I32, value: I32, offset = 0): Statement => ({
    code: [...codeOfI32(address), ...codeOfI32(value), 0x3b, ...at(1, offset)],
  }),
  store: (address: I32, value: I32, offset = 0): Statement => ({
    code: [...codeOfI32(address), ...codeOfI32(value), 0x36, ...at(2, offset)],
  }),
  select: (condition: I32, yes: I32, no: I32) =>
    toI32([...codeOfI32(yes), ...codeOfI32(no), ...codeOfI32(condition), 0x1b]),
  min: (a: Expr<"i32">, b: I32) => i32.select(i32.ltS(a, b), a, b),
  /** The smaller of unsigned numbers. */
  minU: (a: Expr<"i32">, b: Expr<"i32">) => i32.select(i32.ltU(a, b), a, b),
};

const atomic = (opcode: number, address: I32, ...operands: I32[]): Expr<"i32"> =>
  toI32([...codeOfI32(address), ...operands.flatMap(codeOfI32), ATOMIC, opcode, ...at(2, 0)]);

/** Sequentially consistent accesses to an i32; read-modify-write operations return the old value. */
export const atomics = {
  load: (address: I32) => atomic(0x10, address),
  add: (address: I32, value: I32) => atomic(0x1e, address, value),
  and: (address: I32, value: I32) => atomic(0x2c, address, value),
  exchangeIf: (address: I32, expected: I32, value: I32) => atomic(0x48, address, expected, value),
  store: (address: I32, value: I32): Statement => ({ code: atomic(0x17, address, value).code }),
  notify: (address: I32, count: I32) => atomic(0x00, address, count),
  /** Sleeps if the word is `expected`, until notified or for at most `nanoseconds`; -1 is without limit. */
  wait: (address: I32, expected: I32, nanoseconds: number) =>
    toI32([
      ...codeOfI32(address),
      ...codeOfI32(expected),
      0x42, // i64.const; the number is small, so 32 bits of it suffice
      ...signed(nanoseconds),
      ATOMIC,
      0x01,
      ...at(2, 0),
    ]),
};

export const f32 = {
  add: f32Binary(0x92),
  sub: f32Binary(0x93),
  mul: f32Binary(0x94),
  div: f32Binary(0x95),
  min: f32Binary(0x96),
  max: f32Binary(0x97),
  eq: f32Compare(0x5b),
  lt: f32Compare(0x5d),
  gt: f32Compare(0x5e),
  ge: f32Compare(0x60),
  sqrt: (a: F32) => toF32([...codeOfF32(a), 0x91]),
  convert: (a: I32) => toF32([...codeOfI32(a), 0xb2]),
  /** The f32 with these bits. */
  reinterpret: (a: I32) => toF32([...codeOfI32(a), 0xbe]),
  load: (address: I32, offset = 0) => toF32([...codeOfI32(address), 0x2a, ...at(2, offset)]),
  store: (address: I32, value: F32, offset = 0): Statement => ({
    code: [...codeOfI32(address), ...codeOfF32(value), 0x38, ...at(2, offset)],
  }),
  select: (condition: I32, yes: F32, no: F32) =>
    toF32([...codeOfF32(yes), ...codeOfF32(no), ...codeOfI32(condition), 0x1b]),
};

const simd = (opcode: number): number[] => [SIMD, ...unsigned(opcode)];
const vUnary = (opcode: number) => (a: V128) => toV128([...a.code, ...simd(opcode)]);
const vBinary = (opcode: number) => (a: V128, b: V128) => toV128([...a.code, ...b.code, ...simd(opcode)]);
const vShift = (opcode: number) => (a: V128, by: I32) =>
  toV128([...a.code, ...codeOfI32(by), ...simd(opcode)]);
const vLoad = (opcode: number, alignment: number) =>
  function load(address: I32, offset = 0) {
    return toV128([...codeOfI32(address), ...simd(opcode), ...at(alignment, offset)]);
  };
const vStoreLane =
  (opcode: number, alignment: number) =>
  (address: I32, value: V128, lane: number, offset = 0): Statement => ({
    code: [...codeOfI32(address), ...value.code, ...simd(opcode), ...at(alignment, offset), lane],
  });

// The alignment hint of vectors is 2 (four bytes), since views of tensors are aligned to elements only.
export const v128 = {
  /** Four 32-bit integers. */
  constant: (words: readonly [number, number, number, number]) =>
    toV128([...simd(0x0c), ...new Uint8Array(Int32Array.from(words).buffer)]),
  load: vLoad(0x00, 2),
  /** Four 16-bit words as sign-extended 32-bit integers. */
  load16x4S: vLoad(0x03, 1),
  load32Splat: vLoad(0x09, 2),
  /** One word in lane 0, and zeros in the others. */
  load32Zero: vLoad(0x5c, 2),
  load64Zero: vLoad(0x5d, 2),
  store: (address: I32, value: V128, offset = 0): Statement => ({
    code: [...codeOfI32(address), ...value.code, ...simd(0x0b), ...at(2, offset)],
  }),
  store16Lane: vStoreLane(0x59, 1),
  store32Lane: vStoreLane(0x5a, 2),
  store64Lane: vStoreLane(0x5b, 2),
  and: vBinary(0x4e),
  andNot: vBinary(0x4f),
  or: vBinary(0x50),
  xor: vBinary(0x51),
  /** 1 if any bit is set, else 0. */
  anyTrue: (a: V128) => toI32([...a.code, ...simd(0x53)]),
  /** Bits of a where the mask's bit is 1, else of b. */
  bitselect: (a: V128, b: V128, mask: V128) => toV128([...a.code, ...b.code, ...mask.code, ...simd(0x52)]),
  /** The bytes of a (0 .. 15) and b (16 .. 31) with these numbers. */
  shuffleBytes: (a: V128, b: V128, bytes: readonly number[]) =>
    toV128([...a.code, ...b.code, ...simd(0x0d), ...bytes]),
  /** The words of a (0 .. 3) and b (4 .. 7) with these numbers. */
  shuffle: (a: V128, b: V128, words: readonly [number, number, number, number]) =>
    v128.shuffleBytes(
      a,
      b,
      words.flatMap((word) => [4 * word, 4 * word + 1, 4 * word + 2, 4 * word + 3]),
    ),
};

export const i8x16 = {
  splat: (a: I32) => toV128([...codeOfI32(a), ...simd(0x0f)]),
  /** Byte i is byte indices[i] of a, or 0 for an index past 15. */
  swizzle: vBinary(0x0e),
  /** The same for indices up to 15, in fewer machine instructions (relaxed SIMD). */
  relaxedSwizzle: vBinary(0x100),
};

export const i16x8 = {
  /** Two vectors of four signed integers as one of eight, each clamped to 0 .. 65535. */
  narrowU: vBinary(0x86),
};

export const i32x4 = {
  splat: (a: I32) => toV128([...codeOfI32(a), ...simd(0x11)]),
  lane: (a: V128, lane: number) => toI32([...a.code, ...simd(0x1b), lane]),
  add: vBinary(0xae),
  sub: vBinary(0xb1),
  shl: vShift(0xab),
  shrS: vShift(0xac),
  shrU: vShift(0xad),
  eq: vBinary(0x37),
  gtS: vBinary(0x3b),
  minS: vBinary(0xb6),
  maxS: vBinary(0xb8),
};

export const i64x2 = {
  /** 64-bit products of unsigned words 0 and 1, or 2 and 3. */
  extmulLowU: vBinary(0xde),
  extmulHighU: vBinary(0xdf),
};

export const f32x4 = {
  splat: (a: F32) => toV128([...codeOfF32(a), ...simd(0x13)]),
  lane: (a: V128, lane: number) => toF32([...a.code, ...simd(0x1f), lane]),
  add: vBinary(0xe4),
  sub: vBinary(0xe5),
  mul: vBinary(0xe6),
  div: vBinary(0xe7),
  min: vBinary(0xe8),
  max: vBinary(0xe9),
  /** b where b < a, else a: one machine instruction, unlike min. */
  pmin: vBinary(0xea),
  pmax: vBinary(0xeb),
  abs: vUnary(0xe0),
  neg: vUnary(0xe1),
  sqrt: vUnary(0xe3),
  eq: vBinary(0x41),
  lt: vBinary(0x43),
  gt: vBinary(0x44),
  le: vBinary(0x45),
  ge: vBinary(0x46),
  convert: vUnary(0xfa),
  /** a · b + c, fused if the machine has such an instruction (relaxed SIMD). */
  relaxedMadd: (a: V128, b: V128, c: V128) => toV128([...a.code, ...b.code, ...c.code, ...simd(0x105)]),
};
