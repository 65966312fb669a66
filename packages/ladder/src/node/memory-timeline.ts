import { access, constants } from "node:fs/promises";
import { dirname } from "node:path";
import type { MemorySample } from "@sidenet/tensor";
import { writeFileAtomic } from "./atomic-write.ts";
import { fileError } from "./file-source.ts";

/** Throws `L-FILE-MISSING` or `L-FILE` where a timeline could not be written: before a run rather than in it. */
export async function checkTimelinePath(path: string): Promise<void> {
  await access(dirname(path), constants.W_OK).catch((cause: unknown) => {
    throw fileError(path, cause);
  });
}

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
