import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import type { Checkpoint, CheckpointTensor } from "./checkpoint.ts";

const indexSchema = z.object({ weight_map: z.record(z.string(), z.string().min(1)) });

/**
 * Joins the shards that a `model.safetensors.index.json` names into one checkpoint, with all that they hold.
 * `open` gets plain file names (no folders). Throws `L-SAFETENSORS-INDEX` on a malformed index, a file name that leaves
 * the folder, a tensor that is not in the shard the index names, or one that is in another too; shards opened so far are closed then.
 */
export async function openSafetensorsShards(
  indexName: string,
  index: unknown,
  open: (fileName: string) => Promise<Checkpoint>,
): Promise<Checkpoint> {
  const { weight_map } = checked(indexSchema, index, (why) =>
    fail(indexName, `malformed: ${why}. Fetch it again.`),
  );
  const places = new Map(Object.entries(weight_map));
  const shards = new Map<string, Checkpoint>();
  try {
    for (const [, file] of places) {
      if (!isPlainName(file)) {
        fail(indexName, `shard ${shown(file)} is not a plain file name. Fetch the index again.`);
      }
      if (!shards.has(file)) shards.set(file, await openNamed(indexName, file, open));
    }
    for (const [name, file] of places) {
      if (!shards.get(file)?.tensors.has(name))
        fail(indexName, `it places ${shown(name)} in ${file}, which does not hold it. Fetch both again.`);
    }
    const tensors = new Map<string, CheckpointTensor>();
    for (const [file, shard] of shards) {
      for (const [name, tensor] of shard.tensors) {
        const place = places.get(name) ?? file;
        if (place !== file)
          fail(indexName, `${shown(name)} is in ${place} and in ${file}. Fetch all of them again.`);
        places.set(name, file);
        tensors.set(name, tensor);
      }
    }
    const metadata = new Map([...shards.values()].flatMap((shard) => [...shard.metadata]));
    return { name: indexName, tensors, metadata, close: () => closeAll(shards.values()) };
  } catch (error) {
    await closeAll(shards.values());
    throw error;
  }
}

/** A name that stays in the folder, whatever the system takes for a separator. */
const isPlainName = (file: string): boolean =>
  !/[\\/\0]/.test(file) && file !== "." && file !== ".." && file.length < 256;

/** A text of the file in a message. */
const shown = (text: string): string => JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}...` : text);

/** Opens a shard; its errors name the index too, since either may be what is wrong. */
async function openNamed(
  indexName: string,
  file: string,
  open: (fileName: string) => Promise<Checkpoint>,
): Promise<Checkpoint> {
  try {
    return await open(file);
  } catch (cause) {
    if (!(cause instanceof SidenetError)) throw cause;
    throw new SidenetError(cause.code, `${indexName} names the shard ${shown(file)}. ${cause.text}`, {
      cause,
    });
  }
}

async function closeAll(shards: Iterable<Checkpoint>): Promise<void> {
  for (const shard of shards) await shard.close();
}

function fail(indexName: string, text: string): never {
  throw new SidenetError("L-SAFETENSORS-INDEX", `${indexName}: ${text}`);
}
