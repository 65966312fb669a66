/**
 * The first key that one object of a JSON text holds twice, or null. `JSON.parse` keeps the last silently, so two
 * readers could see two different files. The text must be valid JSON.
 */
export function findDuplicateKey(json: string): string | null {
  const open: (Set<string> | null)[] = []; // keys of each enclosing object; null for an array
  const token = /"(?:[^"\\]|\\.)*"(\s*:)?|[{}[\]]/gsu;
  for (let match = token.exec(json); match; match = token.exec(json)) {
    const [text, colon] = match;
    if (text === "{") open.push(new Set());
    else if (text === "[") open.push(null);
    else if (text === "}" || text === "]") open.pop();
    else if (colon !== undefined) {
      const key = JSON.parse(text.slice(0, text.length - colon.length)) as string;
      const keys = open.at(-1);
      if (keys?.has(key)) return key;
      keys?.add(key);
    }
  }
  return null;
}
