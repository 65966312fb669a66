// The options of a script, from a table of their defaults. A usage error prints two lines and ends the script with 2; an error
// that its user can cause prints its message, and ends it with 1.

import { readFileSync } from "node:fs";
import { basename, relative } from "node:path";
import { parseArgs } from "node:util";
import { isExpected } from "./steps.mjs";

/** The usage line of the running script. */
let usage = "";

const nameOf = () => basename(process.argv[1], ".mjs");

/** Prints what is wrong with an option and the usage line, and ends the process with 2. */
export function usageError(why) {
  console.error(`${nameOf()}: ${why}\nusage: ${usage}`);
  process.exit(2);
}

/** A usage error if one of the names that an option lists is none of `all`. `means` says whether a name means an entry. */
export function checkNames(option, names, all, means = (name, entry) => name === entry) {
  const unknown = names.find((name) => !all.some((entry) => means(name, entry)));
  if (unknown !== undefined) usageError(`--${option} ${unknown}: there are ${all.join(", ")}`);
}

/**
 * Values by option. The default's type decides how an option is read: a string; a flag (false); a number, whole unless the
 * default has a fraction; a comma-separated list of strings, or of numbers if the default has some; null for a string that may
 * be missing, or must be given if it is one of `required`. Numbers are 0 or more, those of `positive` options 1 or more. An
 * object is an option of `parseArgs`. --help prints the comment at the head of the script.
 */
export function scriptOptions(defaults, { required = [], positive = [] } = {}) {
  process.once("uncaughtException", (error) => {
    console.error(isExpected(error) ? `${nameOf()}: ${error.message}` : error);
    process.exit(1); // a driver's threads would keep the process running
  });
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
    values[name] = read(name, values[name], value, positive.includes(name) ? 1 : 0);
  }
  return values;
}

const isRow = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function rowOf(value) {
  if (isRow(value)) return value;
  if (typeof value === "boolean") return { type: "boolean", default: value };
  return value === null ? { type: "string" } : { type: "string", default: String(value) };
}

function read(name, text, fallback, least) {
  if (typeof fallback === "number") return readNumber(name, text, fallback, least);
  if (!Array.isArray(fallback)) return text;
  const parts = text.split(",").filter((part) => part !== "");
  return typeof fallback[0] === "number"
    ? parts.map((part) => readNumber(name, part, fallback[0], least))
    : parts;
}

function readNumber(name, text, fallback, least) {
  const isWhole = Number.isInteger(fallback);
  const value = text.trim() === "" ? Number.NaN : Number(text);
  if (Number.isFinite(value) && value >= least && (!isWhole || Number.isSafeInteger(value))) return value;
  return usageError(`--${name} ${text}: wanted a ${isWhole ? "whole " : ""}number, ${least} or more`);
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
export function headOf(path) {
  const lines = readFileSync(path, "utf8").split("\n");
  const end = lines.findIndex((line) => !line.startsWith("//"));
  return lines
    .slice(0, end)
    .map((line) => line.replace(/^\/\/ ?/, ""))
    .join("\n");
}
