/** Runs entry points of WGSL: all threads of a workgroup from barrier to barrier. */
import { fromFloat16Bits, roundToFloat16 } from "../../src/float16.ts";
import { Emitter, numbersIn } from "./emit.ts";
import { type FunctionHead, parseModule, typesOf } from "./parser.ts";
import { type Elem, elemOf, type Type } from "./types.ts";

/** Numbers of an array; halves are floats that have been rounded. */
export type Memory = Float32Array | Int32Array | Uint32Array;

export interface Program {
  readonly bindings: Readonly<Record<string, { readonly elem: Elem; readonly writable: boolean }>>;
  readonly run: (
    memory: Readonly<Record<string, Memory>>,
    params: Readonly<Record<string, number | boolean>>,
    grid: readonly [number, number, number],
  ) => void;
}

interface Thread {
  readonly memory: Readonly<Record<string, Memory>>;
  readonly params: Readonly<Record<string, number>>;
  readonly lane: number;
  /** What each lane of the subgroup gives the others. */
  readonly lanes: Nested[];
}

type Nested = number | boolean | Nested[];
type Numbers = (a: Nested, b?: Nested, c?: Nested) => Nested;

const at = (x: Nested | undefined, i: number) => (typeof x === "object" ? x[i] : x);

/** f of numbers at the same places, of vectors and of columns of matrices; what is single goes with all. */
function zip(f: Numbers, a: Nested, b?: Nested, c?: Nested): Nested {
  const shape = typeof a === "object" ? a : typeof b === "object" ? b : c;
  if (typeof shape !== "object") return f(a, b, c);
  const result: Nested[] = new Array(shape.length);
  for (let i = 0; i < shape.length; i++) {
    const x = at(a, i)!;
    result[i] = typeof shape[i] === "object" ? zip(f, x, at(b, i), at(c, i)) : f(x, at(b, i), at(c, i));
  }
  return result;
}

const word = new Uint32Array(1);
const WORDS = { u32: word, i32: new Int32Array(word.buffer), f32: new Float32Array(word.buffer) };
type Word = keyof typeof WORDS;

/** A right operand: its numbers, by their index in memory. */
interface Right {
  readonly numberAt: (index: number) => number;
  readonly at: number;
  readonly step: number;
  readonly isColumns: boolean;
}

const SIDE = 16;
const EIGHT = 8;
const HALVES = Float32Array.from({ length: 2 ** 16 }, (_, bits) => fromFloat16Bits(bits));

/** Reads halves from memory, by their index: from numbers of their own, or from words of which each has the bits of two. */
function halvesIn(memory: Memory): Right["numberAt"] {
  if (!(memory instanceof Uint32Array)) return (index) => memory[index];
  const bits = new Uint16Array(memory.buffer, memory.byteOffset, 2 * memory.length);
  return (index) => HALVES[bits[index]];
}

/** Memory as floats: words have their bits. */
const floatsIn = (memory: Memory): Memory =>
  memory instanceof Uint32Array ? new Float32Array(memory.buffer, memory.byteOffset, memory.length) : memory;

/** Of a left operand the row that a lane's results need, of a result its eight numbers. */
function loadMatrix($: Thread, use: string, major: string, memory: Memory, at: number, step: number) {
  const isColumns = major === "col";
  const row = $.lane >> 1;
  if (use === "result") {
    const start = at + row * step + ($.lane & 1) * EIGHT;
    return Float32Array.from(floatsIn(memory).subarray(start, start + EIGHT));
  }
  const perWord = memory instanceof Uint32Array ? 2 : 1;
  const operand: Right = { numberAt: halvesIn(memory), at: perWord * at, step: perWord * step, isColumns };
  if (use === "right") return operand;
  return Float32Array.from({ length: SIDE }, (_, k) =>
    operand.numberAt(operand.at + (isColumns ? row + k * operand.step : row * operand.step + k)),
  );
}

function storeMatrix($: Thread, matrix: Float32Array, memory: Memory, at: number, step: number): void {
  floatsIn(memory).set(matrix, at + ($.lane >> 1) * step + ($.lane & 1) * EIGHT);
}

/** Eight of a lane's row; right operands are read here, so kernels may not have written to them since the load. */
function multiplyAccumulate($: Thread, a: Float32Array, b: Right, c: Float32Array): Float32Array {
  const sum = Float64Array.from(c);
  const first = ($.lane & 1) * EIGHT;
  for (let k = 0; k < SIDE; k++) {
    for (let i = 0; i < EIGHT; i++) {
      const n = first + i;
      sum[i] += a[k] * b.numberAt(b.at + (b.isColumns ? n * b.step + k : k * b.step + n));
    }
  }
  return Float32Array.from(sum);
}

function* uniform(load: () => unknown) {
  yield;
  const value = load();
  yield;
  return value;
}

/** What a thread yields where it waits for its subgroup only. */
const OF_SUBGROUP = "subgroup";

function* exchange($: Thread, mine: Nested, combine: (lanes: readonly Nested[]) => Nested) {
  $.lanes[$.lane] = mine;
  yield OF_SUBGROUP;
  const result = combine($.lanes);
  yield OF_SUBGROUP;
  return result;
}

const greater: Numbers = (a, b) => Math.max(Number(a), Number(b));

const RUNTIME = {
  zip,
  fround: Math.fround,
  half: roundToFloat16,
  clamp: (x: number, low: number, high: number) => Math.min(Math.max(x, low), high),
  bits: (from: Word, to: Word, x: number) => {
    WORDS[from][0] = x;
    return WORDS[to][0];
  },
  load: (memory: Memory, i: number, size: number) => {
    const vector = new Array(size);
    for (let j = 0; j < size; j++) vector[j] = memory[i * size + j];
    return vector;
  },
  store: (memory: Memory, i: number, value: readonly number[]) => memory.set(value, i * value.length),
  replaced: (vector: readonly unknown[], i: number, value: unknown) =>
    vector.map((x, j) => (j === i ? value : x)),
  swizzle: (vector: readonly unknown[], at: readonly number[]) => at.map((i) => vector[i]),
  dot: (a: readonly number[], b: readonly number[]) =>
    Math.fround(a.reduce((sum, x, i) => sum + x * b[i], 0)),
  loadMatrix,
  storeMatrix,
  multiplyAccumulate,
  uniform,
  shuffleXor: ($: Thread, mine: Nested, mask: number) => exchange($, mine, (lanes) => lanes[$.lane ^ mask]),
  subgroupMax: ($: Thread, mine: Nested) =>
    exchange($, mine, (lanes) => lanes.reduce((a, b) => zip(greater, a, b))),
};

const SUBGROUP = 32;

function makeMemory(type: Type, numbers: number): Memory {
  const elem = innerElem(type);
  if (elem === "u32") return new Uint32Array(numbers);
  return elem === "i32" ? new Int32Array(numbers) : new Float32Array(numbers);
}

const innerElem = (type: Type): Elem => (type.kind === "array" ? innerElem(type.of) : elemOf(type));

/** What a thread is told of its place, by WGSL's names. */
function builtinsOf(
  thread: number,
  threads: number,
  wg: readonly number[],
  grid: readonly number[],
): Record<string, unknown> {
  return {
    workgroup_id: wg,
    num_workgroups: grid,
    local_invocation_index: thread,
    local_invocation_id: [thread, 0, 0],
    global_invocation_id: [wg[0] * threads + thread, wg[1], wg[2]],
    subgroup_id: Math.floor(thread / SUBGROUP),
    subgroup_invocation_id: thread % SUBGROUP,
    subgroup_size: SUBGROUP,
  };
}

/** Runs the threads of a subgroup to their next barrier; whether they have ended. */
function runSubgroup(threads: Generator[]): boolean {
  for (;;) {
    const states = threads.map((thread) => thread.next());
    const isAlike = states.every(({ done, value }) => done === states[0].done && value === states[0].value);
    if (!isAlike) throw new Error("threads of a subgroup part");
    if (states[0].value !== OF_SUBGROUP) return states[0].done === true;
  }
}

/** Runs all to their next barrier, from either end in turn; throws when some wait there and others have ended. */
function runThreads(all: Generator[]): void {
  const subgroups: Generator[][] = [];
  for (let i = 0; i < all.length; i += SUBGROUP) subgroups.push(all.slice(i, i + SUBGROUP));
  for (;;) {
    const ended = subgroups.map(runSubgroup);
    if (ended.every(Boolean)) return;
    if (ended.some(Boolean)) throw new Error("threads of a workgroup part at a barrier");
    subgroups.reverse();
    for (const threads of subgroups) threads.reverse();
  }
}

type Entry = (thread: Thread, ...given: unknown[]) => Generator | undefined;

function entryOf(emitter: Emitter, head: FunctionHead): Entry {
  const text = `${emitter.emit(head.name)}\nreturn f_${head.name};`;
  return new Function(...Object.keys(RUNTIME), text)(...Object.values(RUNTIME)) as Entry;
}

/** Compiles one entry point. Throws where the text is past the subset that the kernels are written in. */
export function compile(text: string, name: string): Program {
  const module = parseModule(text);
  const emitter = new Emitter(module);
  const head = module.functions.get(name)!;
  const { params: inputs } = typesOf(head, module);
  const entry = entryOf(emitter, head);
  const threads = Number(new Function(`return ${emitter.value(head.threads!, null).js}`)());
  const shared = [...module.workgroup].map(([key, type]) => [key, type, numbersIn(emitter, type)] as const);
  const bindings = Object.fromEntries(
    [...module.bindings].map(([key, { type, writable }]) => {
      return [key, { elem: innerElem(type), writable }];
    }),
  );
  return {
    bindings,
    run: (bound, given, grid) => {
      const params = Object.fromEntries(Object.entries(given).map(([key, value]) => [key, Number(value)]));
      for (let i = 0; i < grid[0] * grid[1] * grid[2]; i++) {
        const wg = [i % grid[0], Math.floor(i / grid[0]) % grid[1], Math.floor(i / grid[0] / grid[1])];
        const own = Object.fromEntries(
          shared.map(([key, type, numbers]) => [key, makeMemory(type, numbers)]),
        );
        const memory = { ...bound, ...own };
        const all: Generator[] = [];
        let lanes: Nested[] = [];
        for (let t = 0; t < threads; t++) {
          if (t % SUBGROUP === 0) lanes = [];
          const known = builtinsOf(t, threads, wg, grid);
          const run = entry(
            { memory, params, lane: t % SUBGROUP, lanes },
            ...inputs.map(({ builtin }) => known[builtin!]),
          );
          if (emitter.waits(name)) all.push(run!);
        }
        runThreads(all);
      }
    },
  };
}
