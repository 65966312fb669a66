import { type Command, InvalidArgumentError, type Option } from "commander";

/** Parsers for option values; commander adds the option's name to their messages. */

/** A parser of numbers that `fits` accepts; `wanted` says which these are. */
const numberThat =
  (wanted: string, fits: (value: number) => boolean) =>
  (text: string): number => {
    // No text is no number: it is a variable that was not set, and `Number("")` would be 0.
    const value = text.trim() === "" ? Number.NaN : Number(text);
    if (fits(value)) return value;
    throw new InvalidArgumentError(`Wanted ${wanted}.`);
  };

export const positiveInteger = numberThat(
  "a whole number above 0",
  (value) => Number.isSafeInteger(value) && value > 0,
);
export const nonNegativeInteger = numberThat(
  "a whole number, 0 or more",
  (value) => Number.isSafeInteger(value) && value >= 0,
);
/** An index, from 0, or a range of them with both ends, such as 21-27. */
export function indexOrRange(text: string): readonly number[] {
  const [, first, last = first] = /^\s*(\d{1,5})(?:-(\d{1,5}))?\s*$/.exec(text) ?? [];
  const count = Number(last) - Number(first) + 1;
  if (count > 0) return Array.from({ length: count }, (_, i) => Number(first) + i);
  throw new InvalidArgumentError("Wanted an index, or a range such as 21-27.");
}

export const positiveNumber = numberThat("a number above 0", (value) => Number.isFinite(value) && value > 0);
/** A number from `least` to `most`, both included. */
export const numberWithin = (least: number, most: number) =>
  numberThat(`a number from ${least} to ${most}`, (value) => value >= least && value <= most);
/** 0, or what an inverse in float32 allows. */
export const temperature = numberThat(
  "0 or a number from 0.000001 to 1000000",
  (value) => value === 0 || (value >= 1e-6 && value <= 1e6),
);
export const share = numberThat("a number above 0, at most 1", (value) => value > 0 && value <= 1);
export const fraction = numberThat("a number from 0 to below 1", (value) => value >= 0 && value < 1);
/** A number of things, or below 1 a share of them. */
export const countOrShare = numberThat(
  "a whole number, or a share below 1",
  (value) => value >= 0 && (value < 1 || Number.isSafeInteger(value)),
);

/** 32 bits, as generators of random numbers take them. */
export function seed(text: string): number {
  const value = nonNegativeInteger(text);
  if (value < 2 ** 32) return value;
  throw new InvalidArgumentError("Wanted a whole number below 2^32.");
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

/**
 * An option that takes several values, separated by spaces or commas; `parse` makes one or more of each. Commander calls this for one
 * argument after the other and gives the default, if there is one, as the first `list`; given values replace it.
 */
export function listOf<T>(parse: (text: string) => T | readonly T[], defaults: readonly T[] = []) {
  return (text: string, list: readonly T[] = defaults): readonly T[] => [
    ...(list === defaults ? [] : list),
    ...text
      .replace(/,$/, "")
      .split(",")
      .flatMap((part) => parse(part)),
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

/** The options that have another value than their default, from wherever it came. */
export const givenOptions = (command: Command): Option[] =>
  command.options.filter((option) => {
    const value: unknown = command.getOptionValue(option.attributeName());
    // What a negation set to false was not given by the option itself.
    const unset: unknown = option.negate ? true : option.isBoolean() ? false : option.defaultValue;
    return value !== undefined && value !== unset;
  });
