/** What `plan` and a planned `compare` share: from a method to a row of their tables. */
import { CATEGORIES, DEFAULT_PROFILE, type Device, type DeviceProfile, SidenetError } from "@sidenet/tensor";
import type { DeviceName } from "@sidenet/tensor/node";
import { contextLimit, type ModelConfig } from "../model/config.ts";
import {
  BINDING_LIMITS,
  type LargeBuffer,
  type Plan,
  type PlanOptions,
  planStep,
  USUAL_LIMITS,
} from "../training/plan.ts";
import { withDevice } from "./device.ts";
import { type StepFlags, stepSettings } from "./method-options.ts";
import { EXIT } from "./session.ts";
import { formatBytes, formatCount, formatTable } from "./table.ts";
import type { Report } from "./terminal.ts";
import { type Variant, variantFlags } from "./variants.ts";

export interface PlannedDevice {
  readonly kind: Device["kind"];
  readonly label: string;
  readonly profile: DeviceProfile;
}

/** The flags of steps to plan, but for what each method has for itself. */
export interface PlanFlags extends Omit<StepFlags, "method"> {
  readonly device: DeviceName;
  readonly bindingLimit?: number;
  readonly prefixTokens?: number;
  readonly adapterClass: DeviceProfile["adapterClass"];
}

/** The step that a variant stands for, without its context. */
export function stepOf(
  variant: Variant,
  flags: PlanFlags,
  device: PlannedDevice,
): Omit<PlanOptions, "context"> {
  const { batchSize, gradientAccumulation, prefixTokens = 0 } = flags;
  const settings = stepSettings(variantFlags(variant, flags), device);
  return { ...settings, batchSize, gradientAccumulation, prefixTokens, profile: device.profile };
}

/** Kinds of GPU to plan for; the first unless another is given. */
export const ADAPTER_CLASSES = ["discrete", "integrated", "software"] as const;

/** The device that is planned for: that of this machine, or for `meta` a GPU of the given class. Throws as `openDevice`. */
export async function plannedDevice(report: Report, flags: PlanFlags): Promise<PlannedDevice> {
  const { adapterClass, bindingLimit } = flags;
  if (flags.device !== "meta" && adapterClass !== ADAPTER_CLASSES[0]) {
    throw new SidenetError(
      "C-USAGE",
      `--adapter-class is for --device meta, and does nothing for ${flags.device}. Leave one of them out.`,
    );
  }
  const { kind, label, profile } =
    flags.device === "meta"
      ? genericDevice(adapterClass)
      : await withDevice(flags, report, async (device) => device);
  const maxBindingBytes = Math.min(
    bindingLimit ?? Number.POSITIVE_INFINITY,
    flags.device === "meta" && bindingLimit !== undefined ? bindingLimit : profile.maxBindingBytes,
  );
  return { kind, label, profile: { ...profile, maxBindingBytes } };
}

function genericDevice(adapterClass: DeviceProfile["adapterClass"]): PlannedDevice {
  return {
    kind: "meta",
    label: `any ${adapterClass} adapter with f16`,
    profile: {
      ...DEFAULT_PROFILE,
      ...USUAL_LIMITS,
      adapterClass,
      subgroups: adapterClass !== "integrated",
      subgroupSize: adapterClass === "software" ? 8 : 32,
    },
  };
}

/** A plan as `--json` prints it. */
export const planJson = (
  variant: Variant,
  context: number,
  plan: Plan,
  config: ModelConfig,
  { prefixTokens = 0 }: PlanFlags,
) => ({
  method: variant.name,
  context,
  past_model_context: context > contextLimit(config) - prefixTokens,
  trainable_parameters: plan.trainableParameters,
  effective_depth: plan.effectiveDepth,
  peak_bytes: plan.peakBytes,
  peak_bytes_by_category: plan.peakBytesByCategory,
  largest_at_peak: plan.largest.map(({ label, sizeBytes }) => ({ label, size_bytes: sizeBytes })),
  resting_bytes: plan.restingBytes,
  flops: plan.flops,
  flops_by_op: plan.flopsByOp,
  tokens: plan.tokens,
  large_buffers: plan.largeBuffers.map(largeBufferJson),
});

export type PlanRow = ReturnType<typeof planJson>;

const largeBufferJson = ({ label, sizeBytes }: LargeBuffer) => ({
  label,
  size_bytes: sizeBytes,
  exceeds_bindings_of: BINDING_LIMITS.filter((limit) => sizeBytes > limit),
});

/** Why a method could not be planned. */
export interface FailedRow {
  readonly method: string;
  readonly context: number;
  readonly error: { readonly code: string; readonly message: string };
}

export const isPlanned = (row: PlanRow | FailedRow): row is PlanRow => !("error" in row);

/** Every variant at every context. Of several, what one takes too much memory for stands in its row. */
export function planAll(
  config: ModelConfig,
  variants: readonly Variant[],
  contexts: readonly number[],
  flags: PlanFlags,
  device: PlannedDevice,
): (PlanRow | FailedRow)[] {
  const several = variants.length * contexts.length > 1;
  return contexts.flatMap((context) =>
    variants.map((variant): PlanRow | FailedRow => {
      try {
        const plan = planStep(config, { ...stepOf(variant, flags, device), context });
        return planJson(variant, context, plan, config, flags);
      } catch (error) {
        if (!several || !(error instanceof SidenetError)) throw error;
        return failedRow(variant, context, error);
      }
    }),
  );
}

export const failedRow = ({ name }: Variant, context: number, { code, text }: SidenetError): FailedRow => ({
  method: name,
  context,
  error: { code, message: text },
});

/** As where a method cannot be trained: the table has the others, and the exit code says that one is missing. */
export const planExitCode = (rows: readonly (PlanRow | FailedRow)[]): number =>
  rows.every(isPlanned) ? EXIT.ok : EXIT.failed;

/** What is planned, and for which device. */
export function planTitle(model: string, flags: PlanFlags, { label }: PlannedDevice): string {
  const batches = flags.gradientAccumulation === 1 ? "" : ` x ${flags.gradientAccumulation} a step`;
  const prefix = flags.prefixTokens ? ` after a prefix of ${flags.prefixTokens} tokens` : "";
  return `${model}, batch ${flags.batchSize}${batches}${prefix}, planned for ${label}`;
}

/** One line a plan. */
export function planTable(rows: readonly (PlanRow | FailedRow)[]): string {
  const head = ["method", "context", "peak", ...CATEGORIES, "FLOPs a step", "trained"];
  const cells = rows.map((row) =>
    isPlanned(row)
      ? [
          row.method,
          `${row.context}${row.past_model_context ? "*" : ""}`,
          formatBytes(row.peak_bytes),
          ...CATEGORIES.map((category) => formatBytes(row.peak_bytes_by_category[category])),
          formatCount(row.flops),
          formatCount(row.trainable_parameters),
        ]
      : [row.method, `${row.context}`, row.error.code, ...CATEGORIES.map(() => ""), "", ""],
  );
  const problems = rows.filter((row) => !isPlanned(row)).map((row) => (row as FailedRow).error);
  const texts = [...new Set(problems.map(({ code, message }) => `[${code}] ${message}`))];
  return [formatTable(head, cells), ...texts].join("\n");
}

/** The sentence that the star in a table stands for; empty where there is none. */
export const contextNote = (rows: readonly (PlanRow | FailedRow)[], config: ModelConfig): string =>
  rows.some((row) => isPlanned(row) && row.past_model_context)
    ? `* past the model's own context of ${contextLimit(config)} tokens: the cost of such a step, which train refuses.`
    : "";
