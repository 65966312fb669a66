/** Compares a device with golden cases: inputs and expected values of ops, models and adapters. */
import { SidenetError } from "@sidenet/tensor";
import { checkAdapter } from "./check-adapter.ts";
import { checkModel } from "./check-model.ts";
import { checkOp } from "./check-op.ts";
import { type Comparison, share, worstOf } from "./compare.ts";
import { type CaseFolder, type CaseRunner, type CheckContext, malformed, SkipCase } from "./golden-case.ts";

type CaseKind = "op" | "model" | "adapter" | "unknown";

/** A case's folder, and its kind, which follows from the files in it. */
export interface CaseLocation {
  readonly kind: CaseKind;
  readonly folder: CaseFolder;
}

export interface CaseResult {
  readonly name: string;
  readonly kind: CaseKind;
  /** The group of a report that it belongs to: the op's name, "models" or "adapters". */
  readonly group: string;
  readonly status: "passed" | "failed" | "skipped";
  /** The error of the tensor that used most of its tolerance; null where nothing was compared or a value is not finite. */
  readonly error: number | null;
  readonly tolerance: number | null;
  readonly tensor: string | null;
  /** Why it failed or was skipped; null when it passed. */
  readonly reason: string | null;
}

const RUNNERS: Readonly<Record<Exclude<CaseKind, "unknown">, CaseRunner>> = {
  op: checkOp,
  model: checkModel,
  adapter: checkAdapter,
};

/** The kind of case in a folder with these files; null if it is not a case. */
export function caseKind(files: ReadonlySet<string>): CaseKind | null {
  const golden = ["expected.safetensors", "batch.json", "case.json"].some((file) => files.has(file));
  if (files.has("params.json")) return "op";
  if (!golden) return null;
  if (files.has("adapter_config.json")) return "adapter";
  return files.has("config.json") ? "model" : "unknown";
}

type Verdict = Omit<CaseResult, "name" | "kind" | "group">;

function judge(comparisons: readonly Comparison[]): Verdict {
  const worst = worstOf(comparisons);
  if (worst === null) throw malformed("nothing to compare");
  const { tensor, error, tolerance } = worst;
  const passed = share(worst) <= 1;
  const finite = Number.isFinite(error);
  const problem = finite
    ? `is off by ${error.toExponential(1)}`
    : "differs, or has a value that is not finite";
  return {
    status: passed ? "passed" : "failed",
    error: finite ? error : null,
    tolerance,
    tensor,
    reason: passed ? null : `${tensor} ${problem} (tolerance ${tolerance})`,
  };
}

/** The group of a case. It does not throw, whatever is wrong with the case. */
async function groupOf({ kind, folder }: CaseLocation): Promise<string> {
  if (kind !== "op") return kind === "unknown" ? kind : `${kind}s`;
  const params = await folder.json("params.json").catch(() => null);
  const op = (params as { op?: unknown } | null)?.op;
  return typeof op === "string" ? op : "unknown";
}

async function verdict({ kind, folder }: CaseLocation, context: CheckContext): Promise<Verdict> {
  const nothing = { error: null, tolerance: null, tensor: null };
  try {
    if (kind === "unknown") throw new SkipCase("not an op, a model or an adapter");
    return judge(await RUNNERS[kind](folder, context));
  } catch (error) {
    if (error instanceof SkipCase) return { status: "skipped", ...nothing, reason: error.message };
    const reason = error instanceof SidenetError ? error.message : `unexpected: ${(error as Error).stack}`;
    return { status: "failed", ...nothing, reason };
  }
}

/**
 * Runs one case; it never throws. An error in the run makes the case fail. A case that this version does not support, or
 * whose files are malformed, is skipped.
 */
export async function checkCase(location: CaseLocation, context: CheckContext): Promise<CaseResult> {
  const { kind, folder } = location;
  const group = await groupOf(location);
  return { name: folder.name, kind, group, ...(await verdict(location, context)) };
}
