import { type Device, type DType, isFloat, type Shape, type Tensor } from "@sidenet/tensor";
import type { Checkpoint } from "../formats/checkpoint.ts";

/** A tensor of a golden file or of a device; floats are widened to f32. */
export interface HostTensor {
  readonly dtype: "f32" | "i32" | "u8";
  readonly shape: Shape;
  readonly values: ArrayLike<number>;
}

/** Reads every tensor of a file and closes it. Throws `L-DTYPE` for a type that golden files do not use. */
export async function readTensors(checkpoint: Checkpoint): Promise<Map<string, HostTensor>> {
  const tensors = new Map<string, HostTensor>();
  try {
    for (const [name, tensor] of checkpoint.tensors) {
      const { shape, dtype } = tensor;
      const kind = dtype === "I32" ? "i32" : dtype === "U8" ? "u8" : "f32";
      tensors.set(name, { dtype: kind, shape, values: await tensor.read() });
    }
    return tensors;
  } finally {
    await checkpoint.close();
  }
}

/** Uploads a tensor; floats are stored as `float`. */
export function upload(device: Device, { dtype, shape, values }: HostTensor, float: DType): Tensor {
  return device.tensor(values, shape, { dtype: dtype === "f32" ? float : dtype, label: "golden input" });
}

/** Reads tensors by name and frees them, also when a read fails. A list under one name is stacked along a new first axis. */
export async function readAndFree(
  tensors: Readonly<Record<string, Tensor | readonly Tensor[]>>,
): Promise<Map<string, HostTensor>> {
  const read = new Map<string, HostTensor>();
  const parts = Object.entries(tensors).map(([name, part]) => [name, [part].flat() as Tensor[]] as const);
  try {
    for (const [name, list] of parts) {
      const values = await Promise.all(list.map((tensor) => tensor.read()));
      const { shape, dtype } = list[0];
      const kind = isFloat(dtype) ? "f32" : (dtype as "i32" | "u8");
      read.set(
        name,
        list.length === 1
          ? { dtype: kind, shape, values: values[0] }
          : {
              dtype: kind,
              shape: [list.length, ...shape],
              values: values.flatMap((part) => Array.from(part)),
            },
      );
    }
    return read;
  } finally {
    for (const [, list] of parts) for (const tensor of list) tensor.dispose("the comparison after its read");
  }
}

/** The values of a tensor [rows, ...] in the rows for which `keep` [rows] is 1. */
export function selectRows(values: ArrayLike<number>, keep: ArrayLike<number>): number[] {
  const width = values.length / keep.length;
  return Array.from(values).filter((_, i) => keep[Math.floor(i / width)] === 1);
}
