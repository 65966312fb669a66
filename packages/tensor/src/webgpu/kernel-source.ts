/**
 * Parses the WGSL text of a kernel and generates the variant that a dispatch asks for. The text itself is valid WGSL (all
 * elements f32, parameters as immediates). Variants differ in whole lines only:
 *
 *   alias x_t = f32;               becomes f16, i32 or u32 when `x` is bound to such a tensor
 *   <line> // x f16: <other line>  the other line when `x` is bound to an f16 tensor
 *   const TILE: u32 = 8;           another value, likewise `override`
 *   <line>                         the other line if the constant WIDTH is 1, or no line if nothing follows the colon;
 *   // WIDTH=1: <other line>       several such lines may follow each other
 *   fn apply(...) -> T { ... }     another body, one line
 *   var<immediate> p: Params;      a uniform, on adapters without immediates
 */
import { kernels } from "@sidenet/kernels";
import type { DType } from "../dtype.ts";
import { SidenetError } from "../errors.ts";

interface BindingInfo {
  readonly index: number;
  readonly writable: boolean;
  /** Whether the binding is a texture (`KernelContext.texture`). */
  readonly isTexture: boolean;
}

interface ParamField {
  readonly name: string;
  readonly type: "u32" | "i32" | "f32";
}

export interface KernelSource {
  readonly file: string;
  readonly text: string;
  readonly bindings: ReadonlyMap<string, BindingInfo>;
  readonly params: readonly ParamField[];
}

/** What selects a variant of a kernel. */
export interface Variant {
  readonly dtypes: Readonly<Record<string, DType>>;
  readonly consts: Readonly<Record<string, number>>;
  readonly bodies: Readonly<Record<string, string>>;
  readonly immediates: boolean;
}

/** Limit on the bytes of parameters: what adapters allow for immediates. */
const MAX_PARAM_BYTES = 64;

const BINDING = /@group\(0\)\s*@binding\((\d+)\)\s*var<storage(?:,\s*(read|read_write))?>\s*(\w+)\s*:/g;
const TEXTURE = /@group\(0\)\s*@binding\((\d+)\)\s*var\s+(\w+)\s*:\s*texture_storage_2d<rgba32uint,\s*read>/g;
const IMMEDIATE = /^var<immediate> p: Params;$/m;
const ALTERNATIVES = /^(.*)((?:\n[ \t]*\/\/ \w+=\d+:.*)+)$/gm;
const ALTERNATIVE = /^([ \t]*)\/\/ (\w+)=(\d+):(.*)$/gm;

const parsed = new Map<string, KernelSource>();

/** Parses `kernels/<file>.wgsl`, once. Throws `T-KERNEL` if there is no such file or it breaks the rules above. */
export function kernelSource(file: string): KernelSource {
  const known = parsed.get(file);
  if (known) return known;
  const text = (kernels as Record<string, string>)[file];
  if (text === undefined)
    throw new SidenetError(
      "T-KERNEL",
      `there is no kernel "${file}": it is not one of @sidenet/kernels, of the op's own \`sources\`, or of addKernel.`,
    );
  const source = parseKernel(file, text);
  parsed.set(file, source);
  return source;
}

/**
 * Adds a kernel of the caller: WGSL by the rules above, dispatched as `name/entry`. Adding the same text again does nothing.
 * Throws `T-KERNEL` if the name belongs to another text, or if the text breaks the rules.
 */
export function addKernelSource(name: string, text: string): void {
  if (name === "" || name.includes("/")) {
    throw new SidenetError("T-KERNEL", `"${name}" cannot name a kernel. Give it a name without "/".`);
  }
  const known = parsed.get(name)?.text ?? (kernels as Record<string, string>)[name];
  if (known === text) return;
  if (known !== undefined) {
    throw new SidenetError(
      "T-KERNEL",
      `there is another kernel named ${name}, or another text of it was added before. Give this one a name of its own.`,
    );
  }
  parsed.set(name, parseKernel(name, text));
}

function parseKernel(file: string, text: string): KernelSource {
  const bindings = new Map<string, BindingInfo>();
  for (const [, index, access, name = ""] of text.matchAll(BINDING)) {
    bindings.set(name, { index: Number(index), writable: access === "read_write", isTexture: false });
  }
  for (const [, index, name = ""] of text.matchAll(TEXTURE)) {
    bindings.set(name, { index: Number(index), writable: false, isTexture: true });
  }
  return { file, text, bindings, params: parseParams(file, text) };
}

function parseParams(file: string, text: string): ParamField[] {
  const code = text.replaceAll(/\/\/.*$/gm, "");
  if (!/\bParams\b|\bvar<(immediate|uniform)>/.test(code)) return []; // a kernel without parameters
  const body = /struct Params \{([^}]*)\}/.exec(code)?.[1] ?? "";
  const members = body.split(",").flatMap((member) => member.trim() || []);
  const fields = members.flatMap((member): ParamField[] => {
    const [, name, type] = /^(\w+)\s*:\s*(u32|i32|f32)$/.exec(member) ?? [];
    return name === undefined ? [] : [{ name, type: type as ParamField["type"] }];
  });
  const [count, most] = [fields.length, MAX_PARAM_BYTES / 4];
  if (count === 0 || count < members.length || count > most || !IMMEDIATE.test(text)) {
    throw new SidenetError(
      "T-KERNEL",
      `${file}.wgsl wants its parameters as "struct Params { ... }" of 1 to ${most} scalars (f32, i32, u32) and the line ` +
        '"var<immediate> p: Params;", or none of either. Write a vector as scalars.',
    );
  }
  return fields;
}

/** The text with the lines that the constants choose. */
const chooseLines = (text: string, consts: Variant["consts"]): string =>
  text.replace(ALTERNATIVES, (_, line: string, alternatives: string) => {
    let chosen = line;
    for (const [, indent, name, value, other] of alternatives.matchAll(ALTERNATIVE)) {
      if (consts[name] === Number(value)) chosen = other.trim() && `${indent}${other.trim()}`;
    }
    return chosen;
  });

const choosesLines = (text: string, name: string): boolean =>
  new RegExp(`^[ \\t]*// ${name}=\\d+:`, "m").test(text);

/** The WGSL text of a variant. Throws `T-KERNEL` for a constant or function that the file lacks. */
export function specialize(source: KernelSource, variant: Variant): string {
  let text = chooseLines(source.text, variant.consts);
  const replace = (pattern: RegExp, replacement: (line: string) => string, what: string): void => {
    if (!pattern.test(text)) throw new SidenetError("T-KERNEL", `${source.file}.wgsl has no ${what}.`);
    text = text.replace(pattern, replacement);
  };
  for (const [name, dtype] of Object.entries(variant.dtypes)) {
    if (dtype !== "i32" && dtype !== "u32") continue; // a binding without an alias has a fixed type
    text = text.replace(new RegExp(`^alias ${name}_t = f32;`, "m"), `alias ${name}_t = ${dtype};`);
  }
  const half = Object.entries(variant.dtypes).filter(([, dtype]) => dtype === "f16");
  for (const [name] of half) {
    const marked = new RegExp(`^.*// ${name} f16: (.*)$`, "gm");
    if (marked.test(text)) {
      text = text.replace(marked, "$1");
      continue;
    }
    const aliases = new RegExp(`^alias ${name}_\\w+ = .*\\bf32\\b.*;`, "gm");
    replace(
      aliases,
      (line) => line.replaceAll("f32", "f16"),
      `line "alias ${name}_t = f32;", which would become f16 for ${name}: write the type of the binding as array<${name}_t>`,
    );
  }
  for (const [name, value] of Object.entries(variant.consts)) {
    const line = new RegExp(`^((?:const|override) ${name}\\b[^=]*= )([^;]+);`, "m");
    if (choosesLines(source.text, name) && !line.test(text)) continue;
    replace(line, (found) => found.replace(/= [^;]+;/, `= ${value};`), `const ${name}`);
  }
  for (const [name, body] of Object.entries(variant.bodies)) {
    const line = new RegExp(`^(fn ${name}\\(.*\\) -> [^{]+\\{).*\\}$`, "m");
    replace(line, (found) => found.replace(/\{.*\}$/, () => `{ ${body} }`), `one-line function ${name}`);
  }
  if (!variant.immediates) {
    text = text.replace(/^requires immediate_address_space;$/m, "");
    text = text.replace(IMMEDIATE, "@group(1) @binding(0) var<uniform> p: Params;");
  }
  return half.length > 0 ? `enable f16; ${text}` : text; // no line more, or the lines of errors would be off by one
}

/** Views of one buffer, which every dispatch overwrites. */
interface ParamWriter {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly unsigned: Uint32Array;
  readonly signed: Int32Array;
  readonly float: Float32Array;
}

const writers = new WeakMap<KernelSource, ParamWriter>();

function writerOf(source: KernelSource): ParamWriter {
  const known = writers.get(source);
  if (known) return known;
  const buffer = new ArrayBuffer(source.params.length * 4);
  const writer = {
    bytes: new Uint8Array(buffer),
    unsigned: new Uint32Array(buffer),
    signed: new Int32Array(buffer),
    float: new Float32Array(buffer),
  };
  writers.set(source, writer);
  return writer;
}

/**
 * Packs parameters in the order of `struct Params`, into memory that the next call for this kernel reuses. Throws `T-KERNEL` for a
 * missing or unknown parameter.
 */
export function packParams(
  source: KernelSource,
  values: Readonly<Record<string, number | boolean>>,
): Uint8Array<ArrayBuffer> {
  const { params } = source;
  const { bytes, unsigned, signed, float } = writerOf(source);
  for (let i = 0; i < params.length; i++) {
    const { name, type } = params[i];
    const value = Number(values[name]);
    if (Number.isNaN(value) && (values[name] === undefined || type !== "f32")) {
      throw new SidenetError("T-KERNEL", `${source.file}.wgsl: parameter ${name} is ${values[name]}.`);
    }
    if (type === "f32") float[i] = value;
    else if (type === "i32") signed[i] = value;
    else unsigned[i] = value;
  }
  let given = 0;
  for (const _ in values) given++;
  if (given > params.length) refuseUnknown(source, values);
  return bytes;
}

function refuseUnknown(source: KernelSource, values: Readonly<Record<string, number | boolean>>): never {
  const names = source.params.map(({ name }) => name).join(", ");
  const unknown = Object.keys(values).find((name) => !source.params.some((field) => field.name === name));
  throw new SidenetError(
    "T-KERNEL",
    `${source.file}.wgsl has no parameter ${unknown}; ${names ? `it has ${names}` : "it has none"}.`,
  );
}
