/** Counts that a caller gives. */
import { SidenetError } from "@sidenet/tensor";

/**
 * Throws `L-OPTION` unless each is a whole number of at least `least`. What a page's input holds is a text, or NaN where it is
 * empty; with such a count a loop over records would take all of them at once, or never end.
 */
export function checkCounts(counts: Readonly<Record<string, number>>, least = 1): void {
  for (const [name, count] of Object.entries(counts)) {
    if (Number.isInteger(count) && count >= least) continue;
    const given = typeof count === "string" ? `"${count}"` : count;
    throw new SidenetError("L-OPTION", `${name} is ${given}, wanted a whole number from ${least} on.`);
  }
}
