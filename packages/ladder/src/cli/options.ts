import { InvalidArgumentError } from "commander";

/** Parsers for option values; commander adds the option's name to their messages. */

export function positiveInteger(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError("Wanted a whole number above 0.");
}

export function nonNegativeInteger(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0) return value;
  throw new InvalidArgumentError("Wanted a whole number, 0 or more.");
}

export function positiveNumber(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError("Wanted a number above 0.");
}

export function fraction(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value >= 0 && value < 1) return value;
  throw new InvalidArgumentError("Wanted a number from 0 to below 1.");
}
