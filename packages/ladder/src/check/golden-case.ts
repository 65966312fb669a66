/** What a golden case is to its runner: files, a device, and a way to say why it cannot be run. */
import { type Device, SidenetError } from "@sidenet/tensor";
import { z } from "zod";
import type { WeightDType } from "../base-storage.ts";
import type { Checkpoint } from "../formats/checkpoint.ts";
import type { Comparison } from "./compare.ts";
import { type HostTensor, readTensors } from "./host-tensor.ts";

/** The files of one case, wherever they are: a folder on a disk, or addresses in a page. */
export interface CaseFolder {
  /** For messages and reports: "ops/matmul/nn-7x5x3". */
  readonly name: string;
  has(file: string): Promise<boolean>;
  /** A parsed JSON file. Throws `L-FILE-MISSING`, `L-FILE` or `L-JSON`. */
  json(file: string): Promise<unknown>;
  /** A safetensors file; the caller closes it. */
  open(file: string): Promise<Checkpoint>;
  /** The folder at a relative path: adapters name their model so. */
  folder(path: string): CaseFolder;
}

export interface CheckContext {
  readonly device: Device;
  /** How inputs and weights are stored on the device; decides which tolerances count. */
  readonly dtype: WeightDType;
}

/** Runs a case; throws `SkipCase` for one that cannot be judged. */
export type CaseRunner = (folder: CaseFolder, context: CheckContext) => Promise<Comparison[]>;

/** Not a failure of the device: what the case asks for is not there yet, or its files are malformed. */
export class SkipCase extends Error {
  override readonly name = "SkipCase";
}

/** The case's own files are not as golden/README.md has them. */
export const malformed = (text: string): SkipCase => new SkipCase(`malformed: ${text}`);

/** A JSON file of a case, checked. Throws `SkipCase`. */
export async function readJson<Schema extends z.ZodType>(
  folder: CaseFolder,
  file: string,
  schema: Schema,
): Promise<z.infer<Schema>> {
  const parsed = schema.safeParse(await inCase(folder.json(file)));
  if (parsed.success) return parsed.data;
  throw malformed(`${file}: ${z.prettifyError(parsed.error).replaceAll("\n", " ")}`);
}

/** Tensors of a file of a case. Throws `SkipCase`. */
export async function readCaseTensors(folder: CaseFolder, file: string): Promise<Map<string, HostTensor>> {
  return inCase(folder.open(file).then(readTensors));
}

/** A file that is missing or broken makes the case malformed; any other error is one. */
async function inCase<T>(reading: Promise<T>): Promise<T> {
  try {
    return await reading;
  } catch (error) {
    throw error instanceof SidenetError ? malformed(error.message) : error;
  }
}

const number = z.number().nonnegative();

/** Suggested tolerances by tensor, as `params.json` has them; `case.json` has them the other way round. */
export const opTolerances = z.looseObject({
  float32: z.record(z.string(), number).optional(),
  float16: z.record(z.string(), number).optional(),
});

export const caseTolerances = z.record(z.string(), z.object({ float32: number, float16: number.optional() }));

export const PRECISION = { f32: "float32", f16: "float16" } as const;

/** The tolerance of one quantity of a `case.json`. Throws `SkipCase` when it has none for this precision. */
export function toleranceOf(
  tolerances: z.infer<typeof caseTolerances>,
  quantity: string,
  dtype: WeightDType,
): number {
  const tolerance = tolerances[quantity]?.[PRECISION[dtype]];
  if (tolerance !== undefined) return tolerance;
  if (tolerances[quantity]) throw new SkipCase("it has no float16 tolerances: not meant for float16");
  throw malformed(`case.json has no tolerance for ${quantity}`);
}
