/** Declarations of a kernel's WGSL, and a reader of tokens. */
import { type Elem, scalar, type Type, tokenize, VOID, vec } from "./types.ts";

interface Binding {
  readonly writable: boolean;
  readonly type: Type;
}

/** Of a function; its types are read where it is used (`typesOf`), since not all are of this subset. */
export interface FunctionHead {
  readonly name: string;
  readonly params: readonly string[];
  readonly result: readonly string[];
  /** Threads of a workgroup of an entry point, as tokens. */
  readonly threads: readonly string[] | null;
  readonly body: readonly string[];
}

/** A module's declarations; bodies and values stay tokens. */
export interface Module {
  readonly consts: Map<string, { readonly type: Type | null; readonly value: readonly string[] }>;
  readonly structs: Map<string, Type>;
  readonly aliases: Map<string, Type>;
  readonly bindings: Map<string, Binding>;
  readonly workgroup: Map<string, Type>;
  readonly functions: Map<string, FunctionHead>;
}

/** Reads tokens one after the other. */
export class Reader {
  at = 0;
  readonly tokens: string[];
  constructor(tokens: readonly string[]) {
    this.tokens = [...tokens];
  }
  get done(): boolean {
    return this.at >= this.tokens.length;
  }
  peek(ahead = 0): string {
    return this.tokens[this.at + ahead] ?? "";
  }
  next(): string {
    return this.tokens[this.at++];
  }
  is(token: string): boolean {
    if (this.peek() !== token) return false;
    this.at++;
    return true;
  }
  expect(token: string): void {
    // Of two lists that end together.
    if (token === ">" && /^>[>=]/.test(this.peek())) {
      this.tokens[this.at] = this.peek().slice(1);
      return;
    }
    if (!this.is(token)) {
      throw new Error(
        `${token} is missing before ${this.tokens.slice(Math.max(0, this.at - 12), this.at + 6).join(" ")}`,
      );
    }
  }
  /** Tokens up to the one that closes what `open` opened, which is taken as well. */
  until(open: string, close: string): string[] {
    const start = this.at;
    for (let depth = 1; depth > 0; ) {
      const token = this.next();
      if (token === undefined) throw new Error(`no ${close}`);
      if (token === open) depth++;
      if (token === close) depth--;
    }
    return this.tokens.slice(start, this.at - 1);
  }
}

const SCALARS = new Set(["u32", "i32", "f32", "f16", "bool"]);

/** A type, with what follows its name in angles. Elements of `vec4` and the like may be left out: they are null. */
export function readType(reader: Reader, module: Module): Type {
  const name = reader.next();
  if (SCALARS.has(name)) return scalar(name as Elem);
  const known = module.aliases.get(name) ?? module.structs.get(name);
  if (known) return known;
  reader.expect("<");
  const of = readType(reader, module);
  const rest: string[] = [];
  while (reader.is(",")) while (!/^[,>]/.test(reader.peek())) rest.push(reader.next());
  reader.expect(">");
  const elem = "elem" in of ? of.elem : "f32";
  if (/^vec[234]$/.test(name)) return vec(elem, Number(name[3]));
  if (name === "mat4x4") return { kind: "mat", elem };
  if (name === "array") return { kind: "array", of, length: rest.join(" ") || null };
  if (name === "atomic") return of;
  const matrix = /^subgroup_matrix_(left|right|result)$/.exec(name);
  if (matrix) return { kind: "subgroupMatrix", use: matrix[1] as "left" | "right" | "result" };
  throw new Error(`no type ${name}`);
}

function readAttributes(reader: Reader): Map<string, string[]> {
  const attributes = new Map<string, string[]>();
  while (reader.is("@")) {
    const name = reader.next();
    attributes.set(name, reader.is("(") ? reader.until("(", ")") : []);
  }
  return attributes;
}

function readFields(reader: Reader, module: Module, end: string) {
  const fields: { name: string; type: Type; builtin: string | null }[] = [];
  while (!reader.is(end)) {
    const builtin = readAttributes(reader).get("builtin")?.[0] ?? null;
    const name = reader.next();
    reader.expect(":");
    fields.push({ name, type: readType(reader, module), builtin });
    reader.is(",");
  }
  return fields;
}

function readFunction(reader: Reader, module: Module, threads: readonly string[] | null): void {
  const name = reader.next();
  reader.expect("(");
  const params = reader.until("(", ")");
  const result: string[] = [];
  while (!reader.is("{")) result.push(reader.next());
  const body = reader.until("{", "}");
  module.functions.set(name, { name, params, result: result.slice(1), threads, body });
}

function readVariable(reader: Reader, module: Module, attributes: Map<string, string[]>): void {
  reader.expect("<");
  const space = reader.until("<", ">");
  const name = reader.next();
  reader.expect(":");
  const type = readType(reader, module);
  reader.expect(";");
  if (attributes.has("binding")) module.bindings.set(name, { writable: space.includes("read_write"), type });
  else if (space[0] === "workgroup") module.workgroup.set(name, type);
}

/** Parameters, with what the pipeline gives in the place of an argument, and the type of the result. */
export function typesOf({ params, result }: FunctionHead, module: Module) {
  return {
    params: readFields(new Reader([...params, ")"]), module, ")"),
    result: result.length > 0 ? readType(new Reader(result), module) : VOID,
  };
}

/** Reads a module. Throws where it has what this subset has not. */
export function parseModule(text: string): Module {
  const module: Module = {
    consts: new Map(),
    structs: new Map(),
    aliases: new Map(),
    bindings: new Map(),
    workgroup: new Map(),
    functions: new Map(),
  };
  const reader = new Reader(tokenize(text));
  while (!reader.done) {
    const attributes = readAttributes(reader);
    const word = reader.next();
    if (word === "enable" || word === "requires" || word === "diagnostic") while (reader.next() !== ";");
    else if (word === "fn") readFunction(reader, module, attributes.get("workgroup_size") ?? null);
    else if (word === "var") readVariable(reader, module, attributes);
    else if (word === "struct") {
      const name = reader.next();
      reader.expect("{");
      const fields = readFields(reader, module, "}").map((field) => [field.name, field.type] as const);
      module.structs.set(name, { kind: "struct", name, fields });
    } else if (word === "alias" || word === "const" || word === "override") {
      const name = reader.next();
      const type = reader.is(":") ? readType(reader, module) : null;
      reader.expect("=");
      if (word === "alias") module.aliases.set(name, readType(reader, module));
      const value: string[] = [];
      while (reader.peek() !== ";") value.push(reader.next());
      reader.next();
      if (word !== "alias") module.consts.set(name, { type, value });
    } else if (word !== ";") throw new Error(`no declaration ${word}`);
  }
  return module;
}
