import { unsigned } from "./encode.ts";
import {
  codeOf,
  type Expr,
  type F32,
  f32x4,
  type I32,
  i8x16,
  i32,
  type Statement,
  type V128,
  type ValueType,
} from "./instructions.ts";

export const TYPE_CODES: Readonly<Record<ValueType, number>> = { i32: 0x7f, f32: 0x7d, v128: 0x7b };

type Operand<T extends ValueType> = T extends "i32" ? I32 : T extends "f32" ? F32 : V128;

const BLOCK = 0x02;
const LOOP = 0x03;
const IF = 0x04;
const ELSE = 0x05;
const END = 0x0b;
const BRANCH = 0x0c;
const BRANCH_IF = 0x0d;
const CALL = 0x10;
const NOTHING = 0x40; // the type of a block that leaves no value

/** A local variable of a function, which as an expression is its value. */
export interface Local<T extends ValueType> extends Expr<T> {
  readonly index: number;
}

/** A function of the module that code can call. */
export interface Callee {
  readonly index: number;
}

/** Instructions that may be used: those of relaxed SIMD. */
export interface Features {
  readonly relaxedSimd: boolean;
}

/**
 * Builds the body of one function: each method appends code, in order. An expression is code that has not been appended yet. It
 * is evaluated where it is used, each time it is used; `i32`, `f32` and `v128` evaluate it once, into a new local.
 */
export class FunctionBuilder {
  readonly features: Features;
  readonly params: readonly Local<"i32">[];
  readonly #locals: ValueType[] = [];
  #code: number[] = [];

  /** All parameters are i32: addresses and counts. */
  constructor(paramCount: number, features: Features) {
    this.features = features;
    this.params = Array.from({ length: paramCount }, (_, i) => this.#variable("i32", i));
  }

  #variable<T extends ValueType>(type: T, index: number): Local<T> {
    return { type, index, code: [0x20, ...unsigned(index)] };
  }

  /**
   * A new local, set to `value` at this place in the code. Without a value it is 0 when the function starts, and is not set to 0
   * again in a loop.
   */
  local<T extends ValueType>(type: T, value?: Operand<T>): Local<T> {
    const local = this.#variable(type, this.params.length + this.#locals.length);
    this.#locals.push(type);
    if (value !== undefined) this.set(local, value);
    return local;
  }

  i32(value?: I32): Local<"i32"> {
    return this.local("i32", value);
  }

  f32(value?: F32): Local<"f32"> {
    return this.local("f32", value);
  }

  v128(value?: V128): Local<"v128"> {
    return this.local("v128", value);
  }

  /** Appends statements. */
  do(...statements: Statement[]): void {
    for (const { code } of statements) this.#append(code);
  }

  set<T extends ValueType>(local: Local<T>, value: Operand<T>): void {
    this.#append(codeOf(value, local.type));
    this.#append([0x21, ...unsigned(local.index)]);
  }

  /** Evaluates an expression and discards its value. */
  drop(value: Expr<ValueType>): void {
    this.#append(value.code);
    this.#append([0x1a]);
  }

  call(callee: Callee, ...args: I32[]): void {
    for (const arg of args) this.#append(codeOf(arg, "i32"));
    this.#append([CALL, ...unsigned(callee.index)]);
  }

  /** Calls entry `index` of the module's function table, a function of the type numbered `type`. */
  callIndirect(index: I32, type: number, ...args: I32[]): void {
    for (const arg of [...args, index]) this.#append(codeOf(arg, "i32"));
    this.#append([0x11, ...unsigned(type), 0]);
  }

  if(condition: I32, then: () => void, otherwise?: () => void): void {
    this.#append(codeOf(condition, "i32"));
    this.#append([IF, NOTHING]);
    then();
    if (otherwise) {
      this.#append([ELSE]);
      otherwise();
    }
    this.#append([END]);
  }

  /** Repeats the body while the condition, evaluated before each round, holds. */
  while(condition: I32, body: () => void): void {
    this.if(condition, () => {
      this.#append([LOOP, NOTHING]);
      body();
      this.#append(codeOf(condition, "i32"));
      this.#append([BRANCH_IF, 0, END]);
    });
  }

  /** Repeats the body until it reaches `stop()`. */
  forever(body: (stop: (condition: I32) => void) => void): void {
    this.#append([BLOCK, NOTHING, LOOP, NOTHING]);
    body((condition) => {
      this.#append(codeOf(condition, "i32"));
      this.#append([BRANCH_IF, 1]);
    });
    this.#append([BRANCH, 0, END, END]);
  }

  /** Runs the body with i = from, from + step, ... while i < to, as signed numbers. */
  for(from: I32, to: I32, step: I32, body: (i: Local<"i32">) => void): void {
    const i = this.i32(from);
    this.while(i32.ltS(i, to), () => {
      body(i);
      this.set(i, i32.add(i, step));
    });
  }

  /** Copies bytes within memory; the two may overlap. */
  copyBytes(to: I32, from: I32, count: I32): void {
    for (const operand of [to, from, count]) this.#append(codeOf(operand, "i32"));
    this.#append([0xfc, 0x0a, 0, 0]);
  }

  /** Sets bytes to 0. */
  zeroBytes(to: I32, count: I32): void {
    for (const operand of [to, 0, count]) this.#append(codeOf(operand, "i32"));
    this.#append([0xfc, 0x0b, 0]);
  }

  /** a · b + c: fused where the engine has it. */
  madd(a: V128, b: V128, c: V128): V128 {
    return this.features.relaxedSimd ? f32x4.relaxedMadd(a, b, c) : f32x4.add(f32x4.mul(a, b), c);
  }

  /** Byte i of the result is byte indices[i] of the table; all indices are 0 .. 15. */
  lookup(table: V128, indices: V128): V128 {
    return (this.features.relaxedSimd ? i8x16.relaxedSwizzle : i8x16.swizzle)(table, indices);
  }

  /** The function as it stands in the code section: its locals and its code. */
  finish(): number[] {
    const locals = this.#locals.flatMap((type) => [1, TYPE_CODES[type]]);
    return [...unsigned(this.#locals.length), ...locals, ...this.#code, END];
  }

  #append(code: readonly number[]): void {
    for (const byte of code) this.#code.push(byte); // spread would pass thousands of arguments
  }
}
