/** Checks of regular expressions from files: JavaScript's engine backtracks, so nested or many repetitions may hang it. */

/** The largest number of consecutive repetitions. Each tries every length, so a match takes up to length ** this steps. */
const MAX_REPETITIONS = 5;

/** The tokens of an expression that matter: escapes, character classes, group starts and ends, and repetitions. */
const PARTS = /\\.|\[(?:\\.|[^\]\\])*\]|\((?:\?(?:[:=!]|<[=!]|<\w+>))?|\)|[*+]\??|\{\d*,?\d*\}\??/gsu;

const repeats = (part: string): boolean => /^[*+{]/.test(part) && !/^\{[01]?(,1)?\}/.test(part);

/** Whether matching may practically never end: a repetition within a repetition, or many in a row. */
export const mayHang = (expression: string): boolean => repetitionCount(expression) > MAX_REPETITIONS;

/** Whether there is a repetition within a repetition, which takes exponential time on text that nearly matches. */
export const nestsRepetitions = (expression: string): boolean =>
  repetitionCount(expression) === Number.POSITIVE_INFINITY;

/** The number of repetitions in an expression; infinity where one is within another. */
function repetitionCount(expression: string): number {
  const open = [false]; // for each enclosing group, whether it contains a repetition
  let count = 0;
  const parts = [...expression.matchAll(PARTS)];
  for (const [i, { 0: part, index }] of parts.entries()) {
    if (part.startsWith("(")) open.push(false);
    else if (part === ")") {
      const inner = open.pop() ?? false;
      const next = parts[i + 1];
      if (inner && next?.index === index + 1 && repeats(next[0])) return Number.POSITIVE_INFINITY;
      if (open.length === 0) return count; // unbalanced parentheses: RegExp will refuse it
      if (inner) open[open.length - 1] = true;
    } else if (repeats(part)) {
      open[open.length - 1] = true;
      count++;
    }
  }
  return count;
}
