import { type Device, SidenetError, sizeBytes, type Tensor } from "@sidenet/tensor";

/** How an f32 tensor is kept until the backward pass: as it is, in f16, or in 8 bits with a scale for each 64 values. */
export type SavedFormat = "f32" | "f16" | "int8";

/** By what a tensor is for: activations of the taped part ("saved"), hidden states that a side network reads ("rungs"). */
export interface SavedFormats {
  readonly saved?: "f32" | "f16";
  readonly rungs?: SavedFormat;
}

/** Which formats each kind may have; the first is the default. */
const FORMATS: { readonly [K in keyof SavedFormats]-?: readonly NonNullable<SavedFormats[K]>[] } = {
  saved: ["f32", "f16"],
  rungs: ["f32", "f16", "int8"],
};

function checkFormats(formats: SavedFormats): void {
  for (const [kind, known] of Object.entries(FORMATS)) {
    const format = formats[kind as keyof SavedFormats];
    if (format === undefined || (known as readonly string[]).includes(format)) continue;
    throw new SidenetError("A-FORMAT", `formats.${kind} is "${format}", wanted one of ${known.join(", ")}.`);
  }
}

/** The memory of one or more saved tensors: the tensor itself, or a smaller copy of it. */
interface Kept {
  /** The tape's own handles: a tensor's scope may end before the backward pass. Codes and scales for "int8". */
  readonly handles: readonly Tensor[];
  readonly format: SavedFormat;
  /** What was saved; a residual is its own source. */
  readonly source: Tensor;
  /** The tape moved the source's bytes from "workspace" to "saved". */
  readonly relabelled: boolean;
  /** Records that still need it. */
  uses: number;
}

/** One operand or residual of one record. */
export interface SavedTensor {
  readonly kept: Kept;
  readonly shape: readonly number[];
  readonly sizeBytes: number;
}

const bytesOf = ({ handles }: Kept): number =>
  handles.reduce((sum, { dtype, size }) => sum + sizeBytes(dtype, size), 0);

/** What a tape keeps for its backward pass: each tensor once, however many records need it. */
export class SavedTensors {
  readonly #device: Device;
  readonly #formats: SavedFormats;
  /** By tensor, or by its memory where a smaller copy is kept: views of one memory share the copy. */
  readonly #kept = new Map<object, Kept>();

  /** Throws `A-FORMAT` for a format that there is not. */
  constructor(device: Device, formats: SavedFormats) {
    checkFormats(formats);
    this.#device = device;
    this.#formats = formats;
  }

  has(tensor: Tensor): boolean {
    return this.#kept.has(tensor);
  }

  /** Bytes that are live for the backward pass alone: weights and rungs that a rule saves are resident anyway. */
  get sizeBytes(): number {
    const bytes = new Map<object, number>(); // views of one memory count once
    for (const { handles } of this.#kept.values()) {
      for (const { category, memoryKey, dtype, size } of handles) {
        if (category !== "saved") continue;
        bytes.set(memoryKey, Math.max(bytes.get(memoryKey) ?? 0, sizeBytes(dtype, size)));
      }
    }
    return [...bytes.values()].reduce((sum, size) => sum + size, 0);
  }

  /**
   * Keeps an operand of an op alive, or a smaller copy of it if it is an activation: a value that is `tracked`, or a rung.
   * Its bytes count as "saved" unless they have a more telling category.
   */
  keep(tensor: Tensor, tracked: boolean): SavedTensor {
    const format = this.#formatOf(tensor, tracked);
    const key = format === "f32" ? tensor : tensor.memoryKey;
    const known = this.#kept.get(key);
    if (known) known.uses++;
    return this.#saved(known ?? this.#add(key, this.#take(tensor, format)), tensor);
  }

  /** Takes over a residual, which only the backward pass reads. */
  adopt(residual: Tensor): SavedTensor {
    this.#device.keep(residual, "saved");
    const kept: Kept = { handles: [residual], format: "f32", source: residual, relabelled: false, uses: 1 };
    return this.#saved(this.#add(residual, kept), residual);
  }

  /** The tensor for the length of `body`, decoded from its smaller copy if there is one. */
  open<R>(saved: readonly (SavedTensor | null)[], body: (tensors: readonly (Tensor | null)[]) => R): R {
    const decoded: Tensor[] = [];
    try {
      const tensors = saved.map((tensor) => {
        if (tensor === null || tensor.kept.format === "f32") return tensor?.kept.handles[0] ?? null;
        decoded.push(this.#decode(tensor));
        return decoded.at(-1)!;
      });
      return body(tensors);
    } finally {
      for (const tensor of decoded) tensor.dispose("the backward pass, which had used it");
    }
  }

  /** One record needs it no more; frees it after the last. */
  release({ kept }: SavedTensor): void {
    if (--kept.uses > 0) return;
    this.#kept.delete(kept.format === "f32" ? kept.source : kept.source.memoryKey);
    this.#free(kept, "the backward pass, which had used it");
  }

  clear(by: string): void {
    for (const kept of this.#kept.values()) this.#free(kept, by);
    this.#kept.clear();
  }

  #formatOf(tensor: Tensor, tracked: boolean): SavedFormat {
    if (tensor.dtype !== "f32") return "f32"; // as it is
    if (tensor.category === "rungs") return this.#formats.rungs ?? "f32";
    const isActivation = tracked && tensor.category === "workspace";
    return isActivation ? (this.#formats.saved ?? "f32") : "f32";
  }

  #take(tensor: Tensor, format: SavedFormat): Kept {
    if (format === "f32") {
      const relabelled = tensor.category === "workspace";
      if (relabelled) this.#device.categorize(tensor, "saved");
      return { handles: [this.#device.retain(tensor)], format, source: tensor, relabelled, uses: 1 };
    }
    const { ops } = this.#device;
    const category = tensor.category === "rungs" ? "rungs" : "saved";
    const copies = format === "f16" ? [ops.cast(tensor, { to: "f16" })] : ops.quantize8(tensor);
    for (const copy of copies) this.#device.keep(copy, category);
    // The original lives on as whatever else it is for.
    if (category === "rungs") this.#device.categorize(tensor, "workspace");
    return { handles: copies, format, source: tensor, relabelled: false, uses: 1 };
  }

  #decode({ kept: { handles, format }, shape }: SavedTensor): Tensor {
    const { ops } = this.#device;
    return this.#device.scope(() => {
      const [codes, scales] = handles;
      const values = format === "f16" ? ops.cast(codes, { to: "f32" }) : ops.dequantize8(codes, scales);
      return ops.reshape(values, { shape });
    });
  }

  #saved(kept: Kept, { shape }: Tensor): SavedTensor {
    return { kept, shape, sizeBytes: bytesOf(kept) };
  }

  #add(key: object, kept: Kept): Kept {
    this.#kept.set(key, kept);
    return kept;
  }

  #free({ handles, source, relabelled }: Kept, by: string): void {
    for (const handle of handles) handle.dispose(by);
    // Where someone else holds it still, it is workspace again.
    if (relabelled && !source.disposed) this.#device.categorize(source, "workspace");
  }
}
