import type { MemorySample } from "@sidenet/tensor";
import { writeFileAtomic } from "./atomic-write.ts";

/**
 * Writes samples as JSON lines, one an op: `{"i", "op", "in", "live_bytes", "highest_bytes", "live": {category: bytes}}`,
 * categories without bytes left out. `in` names the open scopes, `highest_bytes` is the most since the line before, and
 * the largest of them the peak.
 */
export async function writeTimeline(path: string, samples: readonly MemorySample[]): Promise<void> {
  const lines = samples.map(({ op, scopes, live, liveBytes, highestBytes }, i) =>
    JSON.stringify({
      i,
      op,
      in: scopes.join(" / "),
      live_bytes: liveBytes,
      highest_bytes: highestBytes,
      live: Object.fromEntries(Object.entries(live).filter(([, bytes]) => bytes > 0)),
    }),
  );
  await writeFileAtomic(path, `${lines.join("\n")}\n`);
}
