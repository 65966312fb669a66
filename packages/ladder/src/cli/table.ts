/** Rows as aligned text: the first column to the left, the others to the right. */
export function formatTable(
  head: readonly string[],
  rows: readonly (readonly (string | number)[])[],
): string {
  const cells = [head, ...rows].map((row) => row.map(String));
  const widths = head.map((_, column) => Math.max(...cells.map((row) => row[column].length)));
  return cells
    .map((row) =>
      row
        .map((cell, column) => (column === 0 ? cell.padEnd(widths[0]) : cell.padStart(widths[column])))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** "6.41 GB", "353 MB", "4 kB": powers of 1000, as memory is sold. */
export function formatBytes(bytes: number): string {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(2)} GB`;
  if (bytes >= 1e5) return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
  return bytes === 0 ? "0 B" : `${Math.ceil(bytes / 1e3)} kB`;
}

/** "30.9 T": with the letter for 10^6, 10^9 or 10^12. */
export function formatCount(count: number): string {
  const [unit, size] = count >= 1e12 ? ["T", 1e12] : count >= 1e9 ? ["G", 1e9] : ["M", 1e6];
  return `${(count / Number(size)).toPrecision(3)} ${unit}`;
}
