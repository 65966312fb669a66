// What a run of pretrain.mjs can go on from: weights, moments and its place, in one safetensors file.

import { stat } from "node:fs/promises";
import { encodeSafetensors, openSafetensors } from "@sidenet/ladder";
import { openFileSource, writeFileAtomic } from "@sidenet/ladder/node";

const WEIGHT = "weight.";
const MOMENT = "optimizer.";

async function readAll(entries, prefix, dtype) {
  const tensors = {};
  for (const [name, tensor] of entries)
    tensors[prefix + name] = { dtype, shape: tensor.shape, data: Float32Array.from(await tensor.read()) };
  return tensors;
}

/** The weights alone, as users load them. Vectors too are f16: they are near 1. */
export async function saveModel(path, weights) {
  await writeFileAtomic(path, encodeSafetensors(await readAll(weights, "", "F16"), { format: "pt" }));
}

/** `place`: the numbers that the run goes on from. */
export async function saveState(path, weights, optimizer, place) {
  const tensors = {
    ...(await readAll(weights, WEIGHT, "F32")),
    ...(await readAll(optimizer.exportState().tensors, MOMENT, "F32")),
  };
  await writeFileAtomic(path, encodeSafetensors(tensors, { place: JSON.stringify(place) }));
}

/** Puts a saved state into the weights and the optimizer, and gives the place; null when there is no such file. */
export async function loadState(path, weights, optimizer) {
  if (!(await stat(path).catch(() => null))) return null;
  const { device } = weights;
  const checkpoint = await openSafetensors(await openFileSource(path));
  try {
    const place = JSON.parse(checkpoint.metadata.get("place"));
    const moments = new Map();
    for (const [name, stored] of checkpoint.tensors) {
      const values = device.tensor(await stored.readFloat32(), stored.shape);
      if (name.startsWith(MOMENT)) {
        moments.set(name.slice(MOMENT.length), values);
        continue;
      }
      const weight = weights.get(name.slice(WEIGHT.length));
      device.ops.fill(weight, { value: 0 });
      device.ops.accumulate(weight, values);
      values.dispose();
    }
    optimizer.importState({ step: place.step, tensors: moments });
    for (const values of moments.values()) values.dispose();
    return place;
  } finally {
    await checkpoint.close();
  }
}
