import { formatShape, SidenetError, sameShape } from "@sidenet/tensor";

/** One tensor of a checkpoint; nothing is read before a `read` method is called. */
export interface CheckpointTensor {
  readonly name: string;
  /** The name of its type in the file: "F32", "BF16", "U8", "Q4_1", ... */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Bytes in the file. */
  readonly sizeBytes: number;
  /** The stored bytes, row-major. */
  readBytes(): Promise<Uint8Array>;
  /** Values: floats and quantized types as float32, I32 and U8 unchanged. Throws `L-DTYPE` on other types. */
  read(): Promise<Float32Array | Int32Array | Uint8Array>;
  /** Values of a float or quantized tensor, widened to float32. Throws `L-DTYPE` on other types. */
  readFloat32(): Promise<Float32Array>;
}

/** Named tensors of one file, of several shards, or of a GGUF under its Hugging Face names. */
export interface Checkpoint {
  /** Its name in error messages. */
  readonly name: string;
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  /** The text metadata of the file. */
  readonly metadata: ReadonlyMap<string, string>;
  /** Closes the files. */
  close(): Promise<void>;
}

/** The tensor of that name and shape. Throws `L-TENSOR-MISSING`, or `L-TENSOR-SHAPE` if `shape` is given and differs. */
export function requireTensor(
  checkpoint: Checkpoint,
  name: string,
  shape?: readonly number[],
): CheckpointTensor {
  const tensor = checkpoint.tensors.get(name);
  if (!tensor) {
    const some = [...checkpoint.tensors.keys()].slice(0, 4).join(", ");
    throw new SidenetError(
      "L-TENSOR-MISSING",
      `${checkpoint.name}: no tensor "${name}" among its ${checkpoint.tensors.size} (${some}, ...). ` +
        "Do the config and the weights belong to the same model?",
    );
  }
  if (shape && !sameShape(shape, tensor.shape)) {
    throw new SidenetError(
      "L-TENSOR-SHAPE",
      `${checkpoint.name}: "${name}" is ${formatShape(tensor.shape)}, but the config wants ${formatShape(shape)}. ` +
        "Do the config and the weights belong to the same model?",
    );
  }
  return tensor;
}
