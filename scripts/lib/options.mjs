// The options of a script, from a table of their defaults. A usage error prints two lines and ends the script with 2.

import { readFileSync } from "node:fs";
import { basename, relative } from "node:path";
import { parseArgs } from "node:util";

/** The usage line of the running script. */
let usage = "";

/** Prints what is wrong with an option and the usage line, and ends the process with 2. */
export function usageError(why) {
  console.error(`${basename(process.argv[1], ".mjs")}: ${why}\nusage: ${usage}`);
  process.exit(2);
}

/**
 * Values by option. The default's type decides how an option is read: a string; a flag (false); a number, whole unless the
 * default has a fraction; a comma-separated list of strings, or of numbers if the default has some; null for a string that may
 * be missing, or must be given if it is one of `required`. An object is an option of `parseArgs`. --help prints the comment at
 * the head of the script.
 */
export function scriptOptions(defaults, { required = [] } = {}) {
  usage = usageOf(defaults, required);
  const rows = Object.entries(defaults).map(([name, value]) => [name, rowOf(value)]);
  let given;
  try {
    given = parseArgs({
      options: { help: { type: "boolean", default: false }, ...Object.fromEntries(rows) },
    }).values;
  } catch (error) {
    usageError(error.message.split(". To specify")[0]); // the rest is about positional arguments, which no script has
  }
  if (given.help) {
    console.log(`${usage}\n\n${headOf(process.argv[1])}`);
    process.exit(0);
  }
  const missing = required.find((name) => given[name] === undefined);
  if (missing !== undefined) usageError(`--${missing} is missing`);
  const { help: _, ...values } = given;
  for (const [name, value] of Object.entries(defaults)) {
    if (values[name] === undefined || isRow(value)) continue;
    values[name] = read(name, values[name], value);
  }
  return values;
}

const isRow = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function rowOf(value) {
  if (isRow(value)) return value;
  if (typeof value === "boolean") return { type: "boolean", default: value };
  return value === null ? { type: "string" } : { type: "string", default: String(value) };
}

function read(name, text, fallback) {
  if (typeof fallback === "number") return readNumber(name, text, fallback);
  if (!Array.isArray(fallback)) return text;
  const parts = text.split(",").filter((part) => part !== "");
  return typeof fallback[0] === "number" ? parts.map((part) => readNumber(name, part, fallback[0])) : parts;
}

function readNumber(name, text, fallback) {
  const isWhole = Number.isInteger(fallback);
  const value = text.trim() === "" ? Number.NaN : Number(text);
  if (Number.isFinite(value) && value >= 0 && (!isWhole || Number.isSafeInteger(value))) return value;
  return usageError(`--${name} ${text}: wanted a ${isWhole ? "whole " : ""}number, 0 or more`);
}

function usageOf(defaults, required) {
  const shown = Object.entries(defaults).map(([name, value]) => {
    const row = rowOf(value);
    const what =
      row.type === "boolean"
        ? ""
        : ` ${row.default === undefined || isRow(value) ? "TEXT" : row.default || '""'}`;
    const each = `--${name}${what}`;
    return required.includes(name) ? each : `[${each}]${row.multiple ? "..." : ""}`;
  });
  return ["node", relative(process.cwd(), process.argv[1]), ...shown].join(" ");
}

/** The comment at the head of a script. */
function headOf(path) {
  const lines = readFileSync(path, "utf8").split("\n");
  const end = lines.findIndex((line) => !line.startsWith("//"));
  return lines
    .slice(0, end)
    .map((line) => line.replace(/^\/\/ ?/, ""))
    .join("\n");
}
