/** The state of a trainer as named tensors, for checkpoints. */
import { formatShape, SidenetError, sameShape, type Tensor } from "@sidenet/tensor";
import type { Checkpoint } from "../formats/checkpoint.ts";
import type { WritableTensor } from "../formats/safetensors-write.ts";
import type { Trainer } from "./trainer.ts";

/** The live tensors: parameters under `adapter.`, AdamW's moments, f32 or 8-bit, under `optimizer.`. */
function stateTensors({ adapter, optimizer }: Trainer, withMoments: boolean): Map<string, Tensor> {
  const named = new Map<string, Tensor>();
  for (const [name, tensor] of adapter.parameters) named.set(`adapter.${name}`, tensor);
  if (!withMoments) return named;
  for (const [name, tensor] of optimizer.exportState().tensors) named.set(`optimizer.${name}`, tensor);
  return named;
}

/** Reads the state to the host. Without moments it is enough to use the adapter, but not to resume its training. */
export async function readTrainerState(
  trainer: Trainer,
  withMoments: boolean,
): Promise<Record<string, WritableTensor>> {
  const out: Record<string, WritableTensor> = {};
  for (const [name, tensor] of stateTensors(trainer, withMoments)) {
    const { shape, dtype } = tensor;
    const data = await tensor.read();
    out[name] = dtype === "u8" ? { dtype: "U8", shape, data: data as Uint8Array } : { dtype: "F32", shape, data: data as Float32Array }; // biome-ignore format: one choice
  }
  return out;
}

/**
 * Overwrites a trainer's tensors with those of a checkpoint, exactly. Throws `L-CHECKPOINT`, and changes nothing, unless names,
 * shapes and types are those of the trainer.
 */
export async function writeTrainerState(
  trainer: Trainer,
  checkpoint: Checkpoint,
  withMoments: boolean,
): Promise<void> {
  const wanted = stateTensors(trainer, withMoments);
  for (const [name, { shape, dtype }] of wanted) {
    const saved = checkpoint.tensors.get(name);
    const type = dtype === "u8" ? "U8" : "F32";
    if (saved && saved.dtype === type && sameShape(saved.shape, shape)) continue;
    const found = saved ? `holds it as ${saved.dtype} ${formatShape(saved.shape)}` : "does not hold it";
    throw new SidenetError(
      "L-CHECKPOINT",
      `${checkpoint.name}: this run trains ${name} as ${type} ${formatShape(shape)}, the checkpoint ${found}. ` +
        "Resume with the method, the sizes and the optimizer state of the checkpoint.",
    );
  }
  const stray = [...checkpoint.tensors.keys()].find(
    (name) => name.startsWith("adapter.") && !wanted.has(name),
  );
  if (stray !== undefined) {
    throw new SidenetError(
      "L-CHECKPOINT",
      `${checkpoint.name} holds ${stray}, which this run does not train. Resume with the method and sizes of the checkpoint.`,
    );
  }
  const { device } = trainer.decoder;
  for (const [name, tensor] of wanted) device.assign(tensor, await checkpoint.tensors.get(name)!.read());
}
