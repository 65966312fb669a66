import { SidenetError } from "@sidenet/tensor";
import { z } from "zod";
import type { Checkpoint, CheckpointTensor } from "./checkpoint.ts";

const indexSchema = z.object({ weight_map: z.record(z.string(), z.string().min(1)) });

/**
 * Joins the shards that a `model.safetensors.index.json` names into one checkpoint.
 * `open` gets plain file names (no folders). Throws `L-SAFETENSORS-INDEX` on a malformed index, a file name that leaves
 * the folder, or a tensor that is not in the shard the index names; shards opened so far are closed then.
 */
export async function openSafetensorsShards(
  indexName: string,
  index: unknown,
  open: (fileName: string) => Promise<Checkpoint>,
): Promise<Checkpoint> {
  const parsed = indexSchema.safeParse(index);
  if (!parsed.success) fail(indexName, `malformed: ${z.prettifyError(parsed.error)}. Fetch it again.`);
  const weightMap = Object.entries(parsed.data.weight_map);
  const shards = new Map<string, Checkpoint>();
  try {
    for (const [, file] of weightMap) {
      if (/[\\/]/.test(file) || file === "..") fail(indexName, `shard "${file}" is not a plain file name.`);
      if (!shards.has(file)) shards.set(file, await open(file));
    }
    const tensors = new Map<string, CheckpointTensor>();
    for (const [name, file] of weightMap) {
      const tensor = shards.get(file)?.tensors.get(name);
      if (!tensor)
        fail(indexName, `it places "${name}" in ${file}, which does not hold it. Fetch both again.`);
      tensors.set(name, tensor);
    }
    const metadata = new Map([...shards.values()].flatMap((shard) => [...shard.metadata]));
    return { name: indexName, tensors, metadata, close: () => closeAll(shards.values()) };
  } catch (error) {
    await closeAll(shards.values());
    throw error;
  }
}

async function closeAll(shards: Iterable<Checkpoint>): Promise<void> {
  for (const shard of shards) await shard.close();
}

function fail(indexName: string, text: string): never {
  throw new SidenetError("L-SAFETENSORS-INDEX", `${indexName}: ${text}`);
}
