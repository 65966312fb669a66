// What a pretraining run leaves on disk: the model for its users, and the state that it goes on from.

import { stat } from "node:fs/promises";
import { encodeSafetensors, openSafetensors, readTrainerState, writeTrainerState } from "@sidenet/ladder";
import { openFileSource, writeFileAtomic } from "@sidenet/ladder/node";

/** The weights as users load them. Vectors too are f16: they are near 1. */
export async function saveModel(path, weights) {
  const tensors = {};
  for (const [name, tensor] of weights)
    tensors[name] = { dtype: "F16", shape: tensor.shape, data: Float32Array.from(await tensor.read()) };
  await writeFileAtomic(path, encodeSafetensors(tensors, { format: "pt" }));
}

/** Weights, moments and counters of a trainer; `place` is whatever else the run goes on from. */
export async function saveState(path, trainer, place) {
  const state = JSON.stringify({ place, counters: trainer.counters });
  await writeFileAtomic(path, encodeSafetensors(await readTrainerState(trainer, true), { state }));
}

/** Puts a saved state into a trainer and gives its place; null when there is no such file. */
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
