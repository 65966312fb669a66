/** Golden cases as their runners see them: files, device, tolerances, and the error for a case that cannot be run. */
import { type Device, formatShape, SidenetError, sameShape } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import type { Checkpoint } from "../formats/checkpoint.ts";
import type { WeightDType } from "../model/base-storage.ts";
import type { Comparison } from "./compare.ts";
import { type HostTensor, readTensors } from "./host-tensor.ts";

/** The files of one case: a folder on a disk, or URLs in a page. */
export interface CaseFolder {
  /** Its name in messages and reports, such as "ops/matmul/nn-7x5x3". */
  readonly name: string;
  has(file: string): Promise<boolean>;
  /** A parsed JSON file. Throws `L-FILE-MISSING`, `L-FILE` or `L-JSON`. */
  json(file: string): Promise<unknown>;
  /** A safetensors file; the caller closes it. */
  open(file: string): Promise<Checkpoint>;
  /** The folder at a relative path, by which adapters refer to their model. */
  folder(path: string): CaseFolder;
}

export interface CheckContext {
  readonly device: Device;
  /** Dtype of inputs and weights on the device, which determines the tolerances. */
  readonly dtype: WeightDType;
}

/** Runs a case. Throws `SkipCase` for a case that cannot be run. */
export type CaseRunner = (folder: CaseFolder, context: CheckContext) => Promise<Comparison[]>;

/** Thrown for a case that is not supported, or whose files are malformed: not a failure of the device. */
export class SkipCase extends Error {
  override readonly name = "SkipCase";
}

/** The error for files that do not follow golden/README.md. */
export const malformed = (text: string): SkipCase => new SkipCase(`malformed: ${text}`);

/** A JSON file of a case, checked. Throws `SkipCase`. */
export async function readJson<Schema extends z.ZodType>(
  folder: CaseFolder,
  file: string,
  schema: Schema,
): Promise<z.infer<Schema>> {
  return checked(schema, await inCase(() => folder.json(file)), (why) => malformed(`${file}: ${why}`));
}

/** Tensors of a file of a case. Throws `SkipCase`. */
export async function readCaseTensors(folder: CaseFolder, file: string): Promise<Map<string, HostTensor>> {
  return inCase(() => folder.open(file).then(readTensors));
}

/** Turns errors about a missing or broken file into `SkipCase`; any other error passes. */
export async function inCase<T>(read: () => T | Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    throw error instanceof SidenetError ? malformed(error.message) : error;
  }
}

const number = z.number().nonnegative();

/** Tolerances of `params.json`: by precision, then by tensor. Those of `case.json` are by quantity, then by precision. */
export const opTolerances = z.looseObject({
  float32: z.record(z.string(), number).optional(),
  float16: z.record(z.string(), number).optional(),
});

export const caseTolerances = z.record(z.string(), z.object({ float32: number, float16: number.optional() }));

export const PRECISION = { f32: "float32", f16: "float16" } as const;

/** For a case without tolerances in float16. */
export const notForFloat16 = (): SkipCase =>
  new SkipCase("it has no float16 tolerances: not meant for float16");

/** The tolerance of one quantity of a `case.json`. Throws `SkipCase` when it has none for this precision. */
export function toleranceOf(
  tolerances: z.infer<typeof caseTolerances>,
  quantity: string,
  dtype: WeightDType,
): number {
  const tolerance = tolerances[quantity]?.[PRECISION[dtype]];
  if (tolerance !== undefined) return tolerance;
  if (tolerances[quantity]) throw notForFloat16();
  throw malformed(`case.json has no tolerance for ${quantity}`);
}

/** Axes of one element do not count: a scalar is [] in golden files, and codes are [bytes, 1]. */
const extents = (shape: readonly number[]): number[] => shape.filter((extent) => extent !== 1);

/** The tensors of a case's `expected.safetensors`, of which each has to be compared. */
export class ExpectedTensors {
  readonly #tensors: ReadonlyMap<string, HostTensor>;
  readonly #compared = new Set<string>();

  constructor(tensors: ReadonlyMap<string, HostTensor>) {
    this.#tensors = tensors;
    if (tensors.size === 0) throw malformed("expected.safetensors is empty");
  }

  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  /**
   * The tensor of that name, to be compared with a result. Throws `SkipCase` if there is none, `L-CHECK-EXPECTED` if it
   * has another shape than the result, or another type where the result is of integers.
   */
  take(name: string, result: Pick<HostTensor, "shape" | "dtype">): HostTensor {
    const tensor = this.#tensors.get(name);
    if (!tensor) throw malformed(`expected.safetensors has no "${name}"`);
    const sameType = result.dtype === "f32" || result.dtype === tensor.dtype;
    if (!sameType || !sameShape(extents(tensor.shape), extents(result.shape))) {
      const shown = ({ dtype, shape }: typeof result) => `${dtype} ${formatShape(shape)}`;
      throw new SidenetError(
        "L-CHECK-EXPECTED",
        `expected.safetensors holds "${name}" as ${shown(tensor)}, but the result is ${shown(result)}.`,
      );
    }
    this.#compared.add(name);
    return tensor;
  }

  /** Throws `SkipCase` for a tensor that nothing was compared with. */
  finish(): void {
    for (const name of this.#tensors.keys()) {
      if (!this.#compared.has(name) && name !== "greedy_margin")
        throw new SkipCase(`it expects "${name}", which is not covered yet`);
    }
  }
}

/** Reads `expected.safetensors`. Throws `SkipCase`. */
export const readExpected = async (folder: CaseFolder): Promise<ExpectedTensors> =>
  new ExpectedTensors(await readCaseTensors(folder, "expected.safetensors"));
