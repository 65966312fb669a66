/** JavaScript for the functions of a kernel: values are numbers, arrays (vectors), arrays of arrays (matrices) and objects. */
import { BUILTINS, type Typed } from "./builtins.ts";
import { type FunctionHead, type Module, Reader, readType, typesOf } from "./parser.ts";
import {
  commonElem,
  defaultElem,
  type Elem,
  elemOf,
  scalar,
  showType,
  type Type,
  vec,
  withElem,
  zeroOf,
} from "./types.ts";

type Scope = Map<string, Typed>;

const LEVELS = [
  ["||"],
  ["&&"],
  ["|"],
  ["^"],
  ["&"],
  ["==", "!="],
  ["<", ">", "<=", ">="],
  ["<<", ">>"],
  ["+", "-"],
  ["*", "/", "%"],
];
const COMPARES = new Set(["==", "!=", "<", ">", "<=", ">=", "||", "&&"]);
const WAITS = new Set(["workgroupBarrier", "workgroupUniformLoad", "subgroupShuffleXor", "subgroupMax"]);

/** One operation of numbers, as JavaScript. */
function operate(op: string, elem: Elem, a: string, b: string): string {
  if (op === "==" || op === "!=") return `(${a}${op}=${b})`;
  if (COMPARES.has(op)) return `(${a}${op}${b})`;
  if (elem === "bool") return op === "&" ? `(${a}&&${b})` : `(${a}||${b})`;
  if (elem === "f32") return `fround(${a}${op}${b})`;
  if (elem === "f16") return `half(${a}${op}${b})`;
  if (elem === "float" || (elem === "int" && op !== "/")) return `(${a}${op}${b})`;
  const cut = elem === "u32" ? ">>>0" : "|0";
  if (op === "*") return `(Math.imul(${a},${b})${cut})`;
  if (op === ">>" && elem === "u32") return `(${a}>>>${b})`;
  return `((${a}${op}${b})${cut})`;
}

/** Of a vector; a store makes another vector, since two variables may have the same. */
function component(js: string, index: string, elem: Elem): Typed {
  const load = `${js}[${index}]`;
  return {
    js: load,
    load,
    store: (value) => `${js} = replaced(${js}, ${index}, ${value})`,
    type: scalar(elem),
  };
}

/** The numbers of a value of an array, vector or single number in memory. */
export function numbersIn(emitter: Emitter, type: Type): number {
  if (type.kind === "vec") return type.size;
  if (type.kind !== "array" || type.length === null) return 1;
  const { js } = emitter.value(type.length.split(" "), null);
  return Number(new Function(`return ${js}`)()) * numbersIn(emitter, type.of);
}

/** Writes functions as they are asked for. */
export class Emitter {
  readonly module: Module;
  readonly #written = new Map<string, string>();
  readonly #waits = new Map<string, boolean>();
  #scopes: Scope[] = [];
  #names = 0;
  #reader = new Reader([]);
  #result: Type = { kind: "void" };

  constructor(module: Module) {
    this.module = module;
  }

  /** All functions that this one needs, and itself. */
  emit(entry: string): string {
    this.#function(this.module.functions.get(entry)!);
    return [...this.#written.values()].join("\n");
  }

  /** The value of tokens, as the given type. */
  value(tokens: readonly string[], type: Type | null): Typed {
    const outer = this.#reader;
    this.#reader = new Reader(tokens);
    const found = this.#expression();
    this.#reader = outer;
    return type ? this.convert(found, type) : found;
  }

  /** Whether a function waits for others of its workgroup, itself or in what it calls. */
  waits(name: string): boolean {
    const known = this.#waits.get(name);
    if (known !== undefined) return known;
    this.#waits.set(name, false);
    const { body } = this.module.functions.get(name)!;
    const found = body.some(
      (token) => WAITS.has(token) || (this.module.functions.has(token) && this.waits(token)),
    );
    this.#waits.set(name, found);
    return found;
  }

  #function(head: FunctionHead): void {
    if (this.#written.has(head.name)) return;
    this.#written.set(head.name, "");
    const saved = [this.#scopes, this.#reader, this.#result] as const;
    const scope: Scope = new Map();
    const types = typesOf(head, this.module);
    for (const { name, type } of types.params) scope.set(name, { js: this.#name(name), type });
    [this.#scopes, this.#reader, this.#result] = [[scope], new Reader(head.body), types.result];
    let body = "";
    while (!this.#reader.done) body += this.#statement();
    [this.#scopes, this.#reader, this.#result] = saved;
    const params = ["$", ...types.params.map(({ name }) => scope.get(name)!.js)].join(", ");
    this.#written.set(
      head.name,
      `function${this.waits(head.name) ? "*" : ""} f_${head.name}(${params}) {\n${body}}`,
    );
  }

  #name(name: string): string {
    return `${name}_${this.#names++}`;
  }

  #find(name: string): Typed {
    for (let i = this.#scopes.length - 1; i >= 0; i--) {
      const found = this.#scopes[i].get(name);
      if (found) return found;
    }
    const constant = this.module.consts.get(name);
    if (constant) return this.value(constant.value, constant.type);
    const type = this.module.workgroup.get(name) ?? this.module.bindings.get(name)?.type;
    if (type) return { js: `$.memory.${name}${type.kind === "array" ? "" : "[0]"}`, type };
    if (name === "p") return { js: "$.params", type: this.module.structs.get("Params")! };
    throw new Error(`nothing is named ${name}`);
  }

  /** As another type: literals become what is wanted, all else has to be it. */
  convert(from: Typed, to: Type): Typed {
    if (showType(from.type) === showType(to)) return from;
    if (!("elem" in from.type && "elem" in to) || showType(withElem(from.type, to.elem)) !== showType(to)) {
      throw new Error(`${showType(from.type)} is no ${showType(to)}: ${from.js}`);
    }
    commonElem(from.type.elem, to.elem);
    const round = to.elem === "f32" ? "fround" : to.elem === "f16" ? "half" : null;
    return { js: round ? `zip(${round}, ${from.js})` : from.js, type: to };
  }

  #block(): string {
    this.#reader.expect("{");
    this.#scopes.push(new Map());
    let body = "";
    while (!this.#reader.is("}")) body += this.#statement();
    this.#scopes.pop();
    return `{\n${body}}`;
  }

  #statement(): string {
    const reader = this.#reader;
    if (reader.peek() === "{") return this.#block();
    if (reader.is("if")) return this.#if();
    if (reader.is("for")) return this.#for();
    if (reader.is("return")) {
      const js = reader.peek() === ";" ? "" : this.convert(this.#expression(), this.#result).js;
      reader.expect(";");
      return `return ${js};\n`;
    }
    if (reader.is("continue") || reader.is("break")) {
      const word = reader.peek(-1);
      reader.expect(";");
      return `${word};\n`;
    }
    if (reader.is(";")) return "";
    const js = this.#simple();
    reader.expect(";");
    return `${js};\n`;
  }

  #if(): string {
    const condition = this.#expression().js;
    let js = `if (${condition}) ${this.#block()}`;
    if (this.#reader.is("else")) js += ` else ${this.#reader.is("if") ? this.#if() : this.#block()}`;
    return `${js}\n`;
  }

  #for(): string {
    const reader = this.#reader;
    reader.expect("(");
    this.#scopes.push(new Map());
    const start = reader.peek() === ";" ? "" : this.#simple();
    reader.expect(";");
    const condition = reader.peek() === ";" ? "" : this.#expression().js;
    reader.expect(";");
    const step = reader.peek() === ")" ? "" : this.#simple();
    reader.expect(")");
    const body = this.#block();
    this.#scopes.pop();
    return `for (${start}; ${condition}; ${step}) ${body}\n`;
  }

  /** A declaration, an assignment or a call. */
  #simple(): string {
    const reader = this.#reader;
    const word = reader.peek();
    if (word === "let" || word === "var" || word === "const") {
      reader.next();
      return this.#declaration();
    }
    const target = this.#unary();
    if (reader.is("++") || reader.is("--")) {
      const one = operate(reader.peek(-1)[0], elemOf(target.type), target.js, "1");
      return `${target.js} = ${one}`;
    }
    const op = reader.peek();
    if (!/^([-+*/%&|^]|<<|>>)?=$/.test(op)) return target.js;
    reader.next();
    const value = this.#expression();
    const result =
      op === "=" ? value : this.#binary(op.slice(0, -1), { ...target, js: target.load ?? target.js }, value);
    const { js } = this.convert(result, target.type);
    return target.store
      ? target.store(js)
      : `${target.js} = ${target.type.kind === "struct" ? `({...${js}})` : js}`;
  }

  #declaration(): string {
    const reader = this.#reader;
    const name = reader.next();
    const given = reader.is(":") ? readType(reader, this.module) : null;
    let value: Typed | null = null;
    if (reader.is("=")) {
      value = this.#expression();
      const type =
        given ?? ("elem" in value.type ? withElem(value.type, defaultElem(value.type.elem)) : value.type);
      value = this.convert(value, type);
    }
    const type = given ?? value!.type;
    const js = this.#name(name);
    this.#scopes.at(-1)!.set(name, { js, type });
    const start = value?.js ?? zeroOf(type);
    return `let ${js} = ${type.kind === "struct" ? `({...${start}})` : start}`;
  }

  #expression(level = 0): Typed {
    if (level === LEVELS.length) return this.#unary();
    let left = this.#expression(level + 1);
    while (LEVELS[level].includes(this.#reader.peek())) {
      const op = this.#reader.next();
      left = this.#binary(op, left, this.#expression(level + 1));
    }
    return left;
  }

  #binary(op: string, a: Typed, b: Typed): Typed {
    const isShift = op === "<<" || op === ">>";
    const elem = isShift ? elemOf(a.type) : commonElem(elemOf(a.type), elemOf(b.type));
    const shape = a.type.kind === "scalar" ? b.type : a.type;
    const type = withElem(shape, COMPARES.has(op) ? "bool" : elem);
    if (shape.kind === "scalar") return { js: operate(op, elem, a.js, b.js), type };
    return { js: `zip((a, b) => ${operate(op, elem, "a", "b")}, ${a.js}, ${b.js})`, type };
  }

  #unary(): Typed {
    const op = this.#reader.peek();
    if (op === "-" || op === "!" || op === "~") {
      this.#reader.next();
      const { js, type } = this.#unary();
      return { js: type.kind === "scalar" ? `(${op}${js})` : `zip((a) => ${op}a, ${js})`, type };
    }
    if (op === "&") {
      this.#reader.next();
      return this.#unary();
    }
    return this.#postfix(this.#primary());
  }

  #postfix(start: Typed): Typed {
    let value = start;
    for (;;) {
      if (this.#reader.is("[")) {
        const index = this.#expression().js;
        this.#reader.expect("]");
        value = this.#element(value, index);
      } else if (this.#reader.is(".")) value = this.#member(value, this.#reader.next());
      else return value;
    }
  }

  #element({ js, type }: Typed, index: string): Typed {
    if (type.kind === "vec") return component(js, index, type.elem);
    if (type.kind === "mat") return { js: `${js}[${index}]`, type: vec(type.elem, 4) };
    if (type.kind !== "array") throw new Error(`${showType(type)} has no elements`);
    if (type.of.kind === "array") {
      const length = numbersIn(this, type.of);
      return { js: `${js}.subarray((${index}) * ${length}, ((${index}) + 1) * ${length})`, type: type.of };
    }
    if (type.of.kind !== "vec") return { js: `${js}[${index}]`, type: type.of };
    const { size } = type.of;
    const load = `load(${js}, ${index}, ${size})`;
    return { js: load, load, store: (value) => `store(${js}, ${index}, ${value})`, type: type.of };
  }

  #member({ js, type }: Typed, name: string): Typed {
    if (type.kind === "struct") {
      const field = type.fields.find(([known]) => known === name);
      if (!field) throw new Error(`${type.name} has no ${name}`);
      return { js: `${js}.${name}`, type: field[1] };
    }
    const at = [...name].map((letter) => "xyzw".indexOf(letter));
    const elem = elemOf(type);
    if (at.length === 1) return component(js, `${at[0]}`, elem);
    return { js: `swizzle(${js}, [${at}])`, type: vec(elem, at.length) };
  }

  #primary(): Typed {
    const reader = this.#reader;
    const token = reader.next();
    if (token === "(") {
      const inner = this.#expression();
      reader.expect(")");
      return { js: `(${inner.js})`, type: inner.type };
    }
    if (/^[\d]/.test(token)) {
      const elem = token.endsWith("u")
        ? "u32"
        : /[.e]/.test(token) && !token.startsWith("0x")
          ? "float"
          : "int";
      return { js: `${Number(token.replace(/u$/, ""))}`, type: scalar(elem) };
    }
    if (token === "true" || token === "false") return { js: token, type: scalar("bool") };
    const callee = this.module.functions.get(token);
    if (callee && reader.peek() === "(") return this.#call(callee);
    const isType = this.module.aliases.has(token) || this.module.structs.has(token);
    const isLocal = this.#scopes.some((scope) => scope.has(token));
    if (isLocal || (!isType && !BUILTINS.has(token))) return this.#find(token);
    return this.#builtin(token);
  }

  #arguments(): Typed[] {
    const given: Typed[] = [];
    this.#reader.expect("(");
    while (!this.#reader.is(")")) {
      given.push(this.#expression());
      this.#reader.is(",");
    }
    return given;
  }

  #call(head: FunctionHead): Typed {
    this.#function(head);
    const { params, result } = typesOf(head, this.module);
    const given = this.#arguments().map((value, i) => this.convert(value, params[i].type).js);
    const js = `f_${head.name}(${["$", ...given].join(", ")})`;
    return { js: this.waits(head.name) ? `(yield* ${js})` : js, type: result };
  }

  /** A built-in function, or the constructor of a type. */
  #builtin(name: string): Typed {
    const reader = this.#reader;
    const own = this.module.aliases.get(name) ?? this.module.structs.get(name);
    let template: Type | null = own ?? null;
    if (!own && reader.peek() === "<") {
      if (/^(vec[234]|mat4x4|array)$/.test(name)) {
        reader.at--;
        template = readType(reader, this.module);
      } else {
        reader.next();
        if (!/_major$/.test(reader.peek())) template = readType(reader, this.module);
        reader.is(",");
        if (/_major$/.test(reader.peek())) name += `.${reader.next()}`;
        reader.expect(">");
      }
    }
    const given = this.#arguments();
    return BUILTINS.get(own ? "construct" : name)!(given, template, this);
  }
}
