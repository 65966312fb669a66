/** Jinja as Python has it where the library that renders chat templates differs: stripping, equality, dates, loops, line ends. */
import { Template } from "@huggingface/jinja";

/** Whether Python takes a character for whitespace: JavaScript has the byte order mark and lacks five control characters. */
const isSpace = (char: string): boolean =>
  "\x1c\x1d\x1e\x1f\x85".includes(char) || (char !== "\ufeff" && char.trim() === "");

/** `str.strip(characters)` of Python, at the ends that are given; null and undefined: whitespace. */
function strip(text: unknown, characters: unknown, ends: { start: boolean; end: boolean }): string {
  if (typeof text !== "string") throw new Error("only a string can be stripped");
  const removed = (char: string) =>
    typeof characters === "string" ? characters.includes(char) : isSpace(char);
  const all = Array.from(text);
  let [first, last] = [0, all.length];
  while (ends.start && first < last && removed(all[first])) first++;
  while (ends.end && first < last && removed(all[last - 1])) last--;
  return all.slice(first, last).join("");
}

const pad = (value: number, length = 2): string => String(value).padStart(length, "0");
const english =
  (options: Intl.DateTimeFormatOptions) =>
  (date: Date): string =>
    new Intl.DateTimeFormat("en-US", options).format(date);
const dayOfYear = (date: Date): number =>
  Math.round((new Date(date).setHours(12) - new Date(date.getFullYear(), 0, 0, 12).getTime()) / 86_400_000);

/** The directives of `strftime`. Names are English whatever the locale, so that a text does not depend on the machine. */
const DIRECTIVES: Readonly<Record<string, (date: Date) => string>> = {
  "%": () => "%",
  a: english({ weekday: "short" }),
  A: english({ weekday: "long" }),
  b: english({ month: "short" }),
  B: english({ month: "long" }),
  d: (date) => pad(date.getDate()),
  H: (date) => pad(date.getHours()),
  I: (date) => pad(date.getHours() % 12 || 12),
  j: (date) => pad(dayOfYear(date), 3),
  m: (date) => pad(date.getMonth() + 1),
  M: (date) => pad(date.getMinutes()),
  p: (date) => (date.getHours() < 12 ? "AM" : "PM"),
  S: (date) => pad(date.getSeconds()),
  w: (date) => String(date.getDay()),
  y: (date) => pad(date.getFullYear() % 100),
  Y: (date) => String(date.getFullYear()),
};

/** A date as text, as Python's `strftime` writes it in English. "%-d" leaves out leading zeros; unknown directives stay. */
export function strftime(date: Date, format: string): string {
  return format.replace(/%(-?)([A-Za-z%])/g, (whole, bare: string, letter: string) => {
    if (!Object.hasOwn(DIRECTIVES, letter)) return whole;
    const value = DIRECTIVES[letter](date);
    return bare ? value.replace(/^0+(?=\d)/, "") : value;
  });
}

/** Python's `==`: booleans are numbers, and texts equal texts only. */
function equal(a: unknown, b: unknown): boolean {
  const number = (value: unknown) => (typeof value === "boolean" ? Number(value) : value);
  return number(a) === number(b);
}

/** Functions that are called in place of the library's. No template can name them, since a name has no blank. */
const FUNCTIONS: Readonly<Record<string, (...values: unknown[]) => string | boolean>> = {
  "method strip": (text, characters) => strip(text, characters, { start: true, end: true }),
  "method lstrip": (text, characters) => strip(text, characters, { start: true, end: false }),
  "method rstrip": (text, characters) => strip(text, characters, { start: false, end: true }),
  "filter trim": (text, characters) => strip(String(text ?? ""), characters, { start: true, end: true }),
  "operator ==": equal,
  "operator !=": (a, b) => !equal(a, b),
  "call strftime_now": (format) => strftime(new Date(), String(format)),
};

/** A part of a parsed template. */
interface Node {
  type?: string;
  [field: string]: unknown;
}

/** The function to call in place of the library's method, filter, function or operator of this name, or null. */
function replacement(kind: "method" | "filter" | "call" | "operator", name: unknown): Node | null {
  const own = `${kind} ${String(name)}`;
  return Object.hasOwn(FUNCTIONS, own) ? { type: "Identifier", value: own } : null;
}

/** Turns a node into a call of a function, if there is one. */
function makeCall(node: Node, callee: Node | null, args: readonly unknown[]): void {
  if (callee) Object.assign(node, { type: "CallExpression", callee, args });
}

/** Makes `text.strip(x)`, `strftime_now(x)`, `text | trim(x)`, `a == b` and `a != b` calls of the functions above. */
function replaceCall(node: Node): void {
  const { type } = node;
  const { callee, filter, operator } = node as Record<string, Node>;
  const args = node.args as readonly unknown[];
  if (type === "CallExpression" && callee.type === "Identifier") {
    makeCall(node, replacement("call", callee.value), args);
  } else if (type === "CallExpression" && callee.computed === false) {
    makeCall(node, replacement("method", (callee.property as Node).value), [callee.object, ...args]);
  } else if (type === "FilterExpression") {
    const { value, args: more = [] } = { ...filter, ...(filter.callee as Node | undefined) } as Node;
    makeCall(node, replacement("filter", value), [node.operand, ...(more as unknown[])]);
  } else if (type === "BinaryExpression") {
    makeCall(node, replacement("operator", operator.value), [node.left, node.right]);
  }
}

/** Makes a loop over what is not defined, such as the `tool_calls` of a message without any, one over nothing. */
function allowUndefined(node: Node): void {
  if (node.type !== "For") return;
  const iterable = node.iterable as Node;
  const [owner, field] = iterable.type === "SelectExpression" ? [iterable, "lhs"] : [node, "iterable"]; // "for x in xs if ..."
  const operator = { value: "or" };
  const nothing = { type: "ArrayLiteral", value: [] };
  owner[field] = { type: "BinaryExpression", operator, left: owner[field], right: nothing };
}

function replaceParts(part: unknown): void {
  if (typeof part !== "object" || part === null) return;
  for (const inner of part instanceof Map ? [...part].flat() : Object.values(part)) replaceParts(inner);
  replaceCall(part as Node);
  allowUndefined(part as Node);
}

/** Parses a template; returns the function that renders it with the values of its variables. Throws the library's errors. */
export function jinjaTemplate(source: string): (values: Record<string, unknown>) => string {
  const template = new Template(source.replace(/\r\n?/g, "\n"));
  replaceParts(template.parsed);
  return (values) => template.render({ ...FUNCTIONS, ...values });
}
