/** The number that a worked solution arrives at. */

/** A minus with a blank after it subtracts, or begins an item of a list. */
const NUMBER = /-?(?:\$\s?)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)/g;

/** "$1,234.50" is 1234.5; null: past all numbers. */
function parseNumber(text: string): number | null {
  const value = Number(text.replace(/[$,\s]/g, ""));
  return Number.isFinite(value) ? value : null;
}

/** What stands after "####", as GSM8K writes it, or else the last number of the text; null: there is none. */
export function finalNumber(text: string): number | null {
  const marked = text.match(/####\s*([^\n]*)/);
  const numbers = (marked ? marked[1] : text).match(NUMBER);
  if (numbers === null) return null;
  return parseNumber(marked ? numbers[0] : numbers[numbers.length - 1]);
}
