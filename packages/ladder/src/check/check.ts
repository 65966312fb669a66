/** Golden cases (inputs and expected values of ops, models and adapters) held against a device. */
import { SidenetError } from "@sidenet/tensor";
import { checkAdapter } from "./check-adapter.ts";
import { checkModel } from "./check-model.ts";
import { checkOp } from "./check-op.ts";
import { type Comparison, share, worstOf } from "./compare.ts";
import { type CaseFolder, type CaseRunner, type CheckContext, SkipCase } from "./golden-case.ts";

export type CaseKind = "op" | "model" | "adapter" | "unknown";

/** Where a case was found, and what it is by the files in it. */
export interface CaseLocation {
  readonly kind: CaseKind;
  readonly folder: CaseFolder;
}

export interface CaseResult {
  readonly name: string;
  readonly kind: CaseKind;
  readonly status: "passed" | "failed" | "skipped";
  /** Of the tensor that used most of its tolerance; null where nothing was compared, or a value is not finite. */
  readonly error: number | null;
  readonly tolerance: number | null;
  readonly tensor: string | null;
  /** Why it was skipped or could not be computed; null otherwise. */
  readonly reason: string | null;
}

const RUNNERS: Readonly<Record<Exclude<CaseKind, "unknown">, CaseRunner>> = {
  op: checkOp,
  model: checkModel,
  adapter: checkAdapter,
};

/** What a folder with these files is: a case, or null for any other folder. */
export function caseKind(files: ReadonlySet<string>): CaseKind | null {
  const golden = ["expected.safetensors", "batch.json", "case.json"].some((file) => files.has(file));
  if (files.has("params.json")) return "op";
  if (!golden) return null;
  if (files.has("adapter_config.json")) return "adapter";
  return files.has("config.json") ? "model" : "unknown";
}

function judge(
  comparisons: readonly Comparison[],
): Pick<CaseResult, "status" | "error" | "tolerance" | "tensor"> {
  const worst = worstOf(comparisons)!;
  return {
    status: share(worst) <= 1 ? "passed" : "failed",
    error: Number.isFinite(worst.error) ? worst.error : null,
    tolerance: worst.tolerance,
    tensor: worst.tensor,
  };
}

/**
 * Runs one case; it never throws. An error while it runs makes a failed case, one that this version has no means for (or
 * whose files are malformed) is skipped.
 */
export async function checkCase({ kind, folder }: CaseLocation, context: CheckContext): Promise<CaseResult> {
  const { name } = folder;
  const nothing = { error: null, tolerance: null, tensor: null };
  try {
    if (kind === "unknown") throw new SkipCase("not an op, a model or an adapter");
    const comparisons = await RUNNERS[kind](folder, context);
    return { name, kind, ...judge(comparisons), reason: null };
  } catch (error) {
    if (error instanceof SkipCase) {
      return { name, kind, status: "skipped", ...nothing, reason: error.message };
    }
    const reason = error instanceof SidenetError ? error.message : `unexpected: ${(error as Error).stack}`;
    return { name, kind, status: "failed", ...nothing, reason };
  }
}
