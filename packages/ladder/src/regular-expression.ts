/** Regular expressions that come from files. JavaScript's engine backtracks, so nested or many repetitions may hang it. */

/** Repetitions one after the other, each of which tries every length: 40 characters to the power of this. */
const MAX_REPETITIONS = 5;

/** A class or an escaped character, the start of a group, its end, or a repetition without an end or of many. */
const PARTS = /\\.|\[(?:\\.|[^\]\\])*\]|\((?:\?(?:[:=!]|<[=!]|<\w+>))?|\)|[*+]\??|\{\d*,?\d*\}\??/gsu;

const repeats = (part: string): boolean => /^[*+{]/.test(part) && !/^\{[01]?(,1)?\}/.test(part);

/** Whether matching a short text may take forever: a repetition within a repetition, or many in a row. */
export const mayHang = (expression: string): boolean => mostRepetitions(expression) > MAX_REPETITIONS;

/** Whether a repetition stands within a repetition, which takes forever on any text that nearly matches. */
export const nestsRepetitions = (expression: string): boolean =>
  mostRepetitions(expression) === Number.POSITIVE_INFINITY;

/** Repetitions in an expression; infinity where one stands within another. */
function mostRepetitions(expression: string): number {
  const open = [false]; // for each group around here, whether something in it repeats
  let count = 0;
  const parts = [...expression.matchAll(PARTS)];
  for (const [i, { 0: part, index }] of parts.entries()) {
    if (part.startsWith("(")) open.push(false);
    else if (part === ")") {
      const inner = open.pop() ?? false;
      const next = parts[i + 1];
      if (inner && next?.index === index + 1 && repeats(next[0])) return Number.POSITIVE_INFINITY;
      if (open.length === 0) return count; // unbalanced: no expression at all
      if (inner) open[open.length - 1] = true;
    } else if (repeats(part)) {
      open[open.length - 1] = true;
      count++;
    }
  }
  return count;
}
