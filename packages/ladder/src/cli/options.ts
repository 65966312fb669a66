import { InvalidArgumentError, type Option } from "commander";

/** Parsers for option values; commander adds the option's name to their messages. */

/** No text is no number: it is a variable that was not set, and `Number("")` would be 0. */
const numberOf = (text: string): number => (text.trim() === "" ? Number.NaN : Number(text));

export function positiveInteger(text: string): number {
  const value = numberOf(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("Wanted a whole number above 0.");
}

export function nonNegativeInteger(text: string): number {
  const value = numberOf(text);
  if (Number.isSafeInteger(value) && value >= 0) return value;
  throw new InvalidArgumentError("Wanted a whole number, 0 or more.");
}

export function positiveNumber(text: string): number {
  const value = numberOf(text);
  if (Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError("Wanted a number above 0.");
}

/** A number from `least` to `most`, both included. */
export function numberWithin(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = numberOf(text);
    if (value >= least && value <= most) return value;
    throw new InvalidArgumentError(`Wanted a number from ${least} to ${most}.`);
  };
}

/** 32 bits, as generators of random numbers take them. */
export function seed(text: string): number {
  const value = nonNegativeInteger(text);
  if (value < 2 ** 32) return value;
  throw new InvalidArgumentError("Wanted a whole number below 2^32.");
}

/** 0, or what an inverse in float32 allows. */
export function temperature(text: string): number {
  const value = numberOf(text);
  if (value === 0 || (value >= 1e-6 && value <= 1e6)) return value;
  throw new InvalidArgumentError("Wanted 0 or a number from 0.000001 to 1000000.");
}

export function share(text: string): number {
  const value = numberOf(text);
  if (value > 0 && value <= 1) return value;
  throw new InvalidArgumentError("Wanted a number above 0, at most 1.");
}

export function fraction(text: string): number {
  const value = numberOf(text);
  if (Number.isFinite(value) && value >= 0 && value < 1) return value;
  throw new InvalidArgumentError("Wanted a number from 0 to below 1.");
}

const BYTE_UNITS: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
};

/** Fewer bytes than this are meant to have a unit. */
const LEAST_PLAIN_BYTES = 1e6;

/** A size such as "12GB" (10^9 bytes each) or "128 MiB" (2^20), in bytes; a plain number is one of bytes, a million at least. */
export function byteSize(text: string): number {
  const [, digits, unit] = /^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$/i.exec(text) ?? [];
  const factor = BYTE_UNITS[unit?.toLowerCase() ?? "none"];
  const bytes = Math.floor(Number(digits) * factor);
  if (unit === "" && bytes < LEAST_PLAIN_BYTES) {
    throw new InvalidArgumentError(
      `${text} are bytes without a unit. Write ${text}GB (10^9 bytes), or MB, MiB, GiB.`,
    );
  }
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  throw new InvalidArgumentError("Wanted a size such as 12GB (10^9 bytes) or 128MiB (2^20).");
}

/** A number of things, or below 1 a share of them. */
export function countOrShare(text: string): number {
  const value = numberOf(text);
  if (value > 0 && (value < 1 || Number.isSafeInteger(value))) return value;
  throw new InvalidArgumentError("Wanted a whole number above 0, or a share below 1.");
}

/**
 * An option that takes several values, separated by spaces or commas, each parsed by `parse`. Commander calls this for one
 * argument after the other and gives the default, if there is one, as the first `list`; given values replace it.
 */
export function listOf<T>(parse: (text: string) => T, defaults: readonly T[] = []) {
  return (text: string, list: readonly T[] = defaults): readonly T[] => [
    ...(list === defaults ? [] : list),
    ...text.replace(/,$/, "").split(",").map(parse),
  ];
}

const repeatableParsers = new WeakSet<object>();

/** Marks the parser of a repeatable option, which gets the value accumulated so far. */
export function repeatable<Parse extends (text: string, previous?: never) => unknown>(parse: Parse): Parse {
  repeatableParsers.add(parse);
  return parse;
}

/** Whether an option takes several values, at once or one after the other; a config file has a list of them. */
export const isRepeatable = ({ variadic, parseArg }: Option): boolean =>
  variadic || (parseArg !== undefined && repeatableParsers.has(parseArg));
