import { type Device, SidenetError, sameShape, sizeBytes, type Tensor } from "@sidenet/tensor";

/** How an f32 tensor is kept until the backward pass: unchanged, in f16, or in 8 bits with a scale for each 64 values. */
export type SavedFormat = "f32" | "f16" | "int8";

/** Formats of the activations that the tape saves ("saved") and of the hidden states that a side network reads ("rungs"). */
export interface SavedFormats {
  readonly saved?: "f32" | "f16";
  readonly rungs?: SavedFormat;
}

/** The formats of each kind; the first is the default. */
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

/** The memory behind one or more saved tensors: the tensor itself, or a copy in a smaller format. */
interface Kept {
  /** The tape's own handles, since a tensor's scope may end before the backward pass. For "int8": codes and scales. */
  readonly handles: readonly Tensor[];
  readonly format: SavedFormat;
  /** The tensor that was saved. */
  readonly source: Tensor;
  /** The source's version when it was kept. */
  readonly version: number;
  /** The source's bytes were accounted as "workspace", and as "saved" since. */
  readonly relabelled: boolean;
  /** Number of records that still need it. */
  uses: number;
}

/** One operand or residual of one record. */
export interface SavedTensor {
  readonly kept: Kept;
  readonly shape: readonly number[];
  readonly sizeBytes: number;
  /** Version of the values that the op of the record computed with. */
  readonly version: number;
}

const keptOf = (
  source: Tensor,
  format: SavedFormat,
  handles: readonly Tensor[],
  relabelled: boolean,
): Kept => ({ handles, format, source, version: source.version, relabelled, uses: 1 });

/** Whether the values are no longer those that the op computed with. */
export const isChanged = ({ kept, version }: SavedTensor): boolean =>
  version !== (kept.format === "f32" ? kept.handles[0].version : kept.version);

const bytesOf = ({ handles }: Kept): number =>
  handles.reduce((sum, { dtype, size }) => sum + sizeBytes(dtype, size), 0);

/** The tensors that a tape keeps for its backward pass, each once, however many records need it. */
export class SavedTensors {
  readonly #device: Device;
  readonly #formats: SavedFormats;
  /** Keyed by tensor, or by its memory where a smaller copy is kept: views of the same memory share that copy. */
  readonly #kept = new Map<object, Kept>();

  /** Throws `A-FORMAT` for an unknown format. */
  constructor(device: Device, formats: SavedFormats) {
    checkFormats(formats);
    this.#device = device;
    this.#formats = formats;
  }

  has(tensor: Tensor): boolean {
    return this.#kept.has(tensor);
  }

  /** Bytes that are alive only for the backward pass: saved weights and rungs are resident anyway. */
  get sizeBytes(): number {
    const bytes = new Map<object, number>(); // views of the same memory count once
    for (const { handles } of this.#kept.values()) {
      for (const { category, memoryKey, dtype, size } of handles) {
        if (category !== "saved") continue;
        bytes.set(memoryKey, Math.max(bytes.get(memoryKey) ?? 0, sizeBytes(dtype, size)));
      }
    }
    return [...bytes.values()].reduce((sum, size) => sum + size, 0);
  }

  /**
   * Keeps an operand of an op alive. Activations, that is `tracked` values and rungs, may be kept as a smaller copy. Bytes
   * that were "workspace" are accounted as "saved"; other categories stay.
   */
  keep(tensor: Tensor, tracked: boolean): SavedTensor {
    // A copy serves later uses too, although the original counts as workspace from then on.
    const format = this.#kept.get(tensor.memoryKey)?.format ?? this.#formatOf(tensor, tracked);
    const key = format === "f32" ? tensor : tensor.memoryKey;
    const known = this.#kept.get(key);
    if (known) known.uses++;
    return this.#saved(known ?? this.#add(key, this.#take(tensor, format)), tensor);
  }

  /** Takes over a residual, which only the backward pass reads. */
  adopt(residual: Tensor): SavedTensor {
    this.#device.keep(residual, "saved");
    const handles = [residual];
    return this.#saved(this.#add(residual, keptOf(residual, "f32", handles, false)), residual);
  }

  /** Calls `body` with the saved tensors of a record, decoded from their smaller copies. f16 is widened for the names in `wide`. */
  open(
    saved: ReadonlyMap<string, SavedTensor | null>,
    wide: ReadonlySet<string>,
    body: (tensors: Readonly<Record<string, Tensor | null>>) => void,
  ): void {
    const decoded: Tensor[] = [];
    const tensors: Record<string, Tensor | null> = {};
    try {
      for (const [name, tensor] of saved) {
        tensors[name] = tensor?.kept.handles[0] ?? null;
        if (tensor === null || tensor.kept.format === "f32") continue;
        tensors[name] = this.#decode(tensor, wide.has(name));
        decoded.push(tensors[name]);
      }
      body(tensors);
    } finally {
      for (const tensor of decoded) tensor.dispose("the backward pass after its last use");
    }
  }

  /** Ends one record's use; the last one frees the memory. */
  release({ kept }: SavedTensor): void {
    if (--kept.uses > 0) return;
    this.#kept.delete(kept.format === "f32" ? kept.source : kept.source.memoryKey);
    this.#free(kept, "the backward pass after its last use");
  }

  clear(by: string): void {
    for (const kept of this.#kept.values()) this.#free(kept, by);
    this.#kept.clear();
  }

  #formatOf(tensor: Tensor, tracked: boolean): SavedFormat {
    if (tensor.dtype !== "f32") return "f32"; // kept unchanged
    if (tensor.category === "rungs") return this.#formats.rungs ?? "f32";
    const isActivation = tracked && tensor.category === "workspace";
    return isActivation ? (this.#formats.saved ?? "f32") : "f32";
  }

  #take(tensor: Tensor, format: SavedFormat): Kept {
    if (format === "f32") {
      const relabelled = tensor.category === "workspace";
      if (relabelled) this.#device.categorize(tensor, "saved");
      return keptOf(tensor, format, [this.#device.retain(tensor)], relabelled);
    }
    const { ops } = this.#device;
    const category = tensor.category === "rungs" ? "rungs" : "saved";
    const copies = format === "f16" ? [ops.cast(tensor, { to: "f16" })] : ops.quantize8(tensor);
    for (const copy of copies) this.#device.keep(copy, category);
    // The copy is the rung from here on; the original is freed by its scope.
    if (category === "rungs") this.#device.categorize(tensor, "workspace");
    return keptOf(tensor, format, copies, false);
  }

  #decode({ kept: { handles, format }, shape }: SavedTensor, wide: boolean): Tensor {
    const { ops } = this.#device;
    const [codes, scales] = handles;
    const isReady = format === "f16" && !wide;
    if (isReady && sameShape(codes.shape, shape)) return this.#device.retain(codes); // costs the host less than a view
    return this.#device.scope(() => {
      const f32 = () => (format === "f16" ? ops.cast(codes, { to: "f32" }) : ops.dequantize8(codes, scales));
      return ops.reshape(isReady ? codes : f32(), { shape });
    });
  }

  #saved(kept: Kept, { shape, version }: Tensor): SavedTensor {
    return { kept, shape, sizeBytes: bytesOf(kept), version };
  }

  #add(key: object, kept: Kept): Kept {
    this.#kept.set(key, kept);
    return kept;
  }

  #free({ handles, source, relabelled }: Kept, by: string): void {
    for (const handle of handles) handle.dispose(by);
    // Another holder may still have the source: its bytes are workspace again.
    if (relabelled && !source.disposed) this.#device.categorize(source, "workspace");
  }
}
