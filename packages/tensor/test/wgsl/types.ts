/** Types of the WGSL that the kernels are written in, and its tokens. */

/** int and float are of literals, which take the type of what they meet. */
export type Elem = "u32" | "i32" | "f32" | "f16" | "bool" | "int" | "float";

export type Type =
  | { readonly kind: "scalar"; readonly elem: Elem }
  | { readonly kind: "vec"; readonly elem: Elem; readonly size: number }
  | { readonly kind: "mat"; readonly elem: Elem } // four columns of four
  | { readonly kind: "struct"; readonly name: string; readonly fields: readonly (readonly [string, Type])[] }
  | { readonly kind: "array"; readonly of: Type; readonly length: string | null }
  | { readonly kind: "subgroupMatrix"; readonly use: "left" | "right" | "result" }
  | { readonly kind: "void" };

export const scalar = (elem: Elem): Type => ({ kind: "scalar", elem });
export const vec = (elem: Elem, size: number): Type => ({ kind: "vec", elem, size });
export const VOID: Type = { kind: "void" };

export function elemOf(type: Type): Elem {
  if ("elem" in type) return type.elem;
  throw new Error(`${showType(type)} has no element type`);
}

export const withElem = (type: Type, elem: Elem): Type => ("elem" in type ? { ...type, elem } : type);

export function showType(type: Type): string {
  switch (type.kind) {
    case "scalar":
      return type.elem;
    case "vec":
      return `vec${type.size}<${type.elem}>`;
    case "mat":
      return `mat4x4<${type.elem}>`;
    case "struct":
      return type.name;
    case "array":
      return `array<${showType(type.of)}>`;
    case "subgroupMatrix":
      return `subgroup_matrix_${type.use}`;
    case "void":
      return "nothing";
  }
}

/** What two operands are computed in: literals follow the other. Throws where WGSL would refuse. */
export function commonElem(a: Elem, b: Elem): Elem {
  if (a === b) return a;
  const isLiteral = (elem: Elem) => elem === "int" || elem === "float";
  if (isLiteral(a) && isLiteral(b)) return "float";
  if (a === "int" && b !== "bool") return b;
  if (b === "int" && a !== "bool") return a;
  if (a === "float" && (b === "f32" || b === "f16")) return b;
  if (b === "float" && (a === "f32" || a === "f16")) return a;
  throw new Error(`${a} meets ${b}`);
}

/** Of a literal that meets nothing. */
export const defaultElem = (elem: Elem): Elem => (elem === "int" ? "i32" : elem === "float" ? "f32" : elem);

/** JavaScript for the zero value of a type. */
export function zeroOf(type: Type): string {
  switch (type.kind) {
    case "scalar":
      return type.elem === "bool" ? "false" : "0";
    case "vec":
      return `[${Array(type.size)
        .fill(zeroOf(scalar(type.elem)))
        .join(",")}]`;
    case "mat":
      return `[${Array(4)
        .fill(zeroOf(vec(type.elem, 4)))
        .join(",")}]`;
    case "struct":
      return `({${type.fields.map(([name, field]) => `${name}:${zeroOf(field)}`).join(",")}})`;
    case "subgroupMatrix":
      return "new Float32Array(8)";
    default:
      throw new Error(`no zero of ${showType(type)}`);
  }
}

const TOKEN =
  /\s+|\/\/[^\n]*|(0x[0-9a-fA-F]+u?|\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+|\d+[ui]?)|([A-Za-z_]\w*)|(<<=|>>=|&&|\|\||<<|>>|<=|>=|==|!=|[-+*/%&|^]=|->|\+\+|--|[^\s\w])/y;

export function tokenize(text: string): string[] {
  const tokens: string[] = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.length) {
    const at = TOKEN.lastIndex;
    const match = TOKEN.exec(text);
    if (match === null) throw new Error(`no token at ${text.slice(at, at + 20)}`);
    const token = match[1] ?? match[2] ?? match[3];
    if (token !== undefined) tokens.push(token);
  }
  return tokens;
}
