// The files of a pretraining run: the model, and the state from which the run resumes.

import { stat } from "node:fs/promises";
import { encodeSafetensors, openSafetensors, readTrainerState, writeTrainerState } from "@sidenet/ladder";
import { openFileSource, writeFileAtomic } from "@sidenet/ladder/node";

/** Saves the model in f16, including its norms, whose weights are near 1. */
export async function saveModel(path, weights) {
  const tensors = {};
  for (const [name, tensor] of weights)
    tensors[name] = { dtype: "F16", shape: tensor.shape, data: Float32Array.from(await tensor.read()) };
  await writeFileAtomic(path, encodeSafetensors(tensors, { format: "pt" }));
}

/** Saves the weights, optimizer moments and counters of a trainer, and `place`, the progress of the run. */
export async function saveState(path, trainer, place) {
  const state = JSON.stringify({ place, counters: trainer.counters });
  await writeFileAtomic(path, encodeSafetensors(await readTrainerState(trainer, true), { state }));
}

/** Restores a trainer, and returns the saved `place`; null if there is no such file. */
export async function loadState(path, trainer) {
  if (!(await stat(path).catch(() => null))) return null;
  const checkpoint = await openSafetensors(await openFileSource(path));
  try {
    const { place, counters } = JSON.parse(checkpoint.metadata.get("state"));
    await writeTrainerState(trainer, checkpoint, true);
    trainer.counters = counters;
    return place;
  } finally {
    await checkpoint.close();
  }
}
