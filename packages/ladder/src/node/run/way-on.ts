import { SidenetError } from "@sidenet/tensor";

/** Adds to an error where the run can be resumed. */
export function withWayOn(error: unknown, savedStep: number | null): unknown {
  if (!(error instanceof SidenetError)) return error;
  const way =
    savedStep === null
      ? "No checkpoint had been written."
      : `The checkpoint after ${savedStep} ${savedStep === 1 ? "step" : "steps"} is intact: continue from it with --resume.`;
  const cures: Record<string, string> = {
    "T-OUT-OF-MEMORY":
      "--micro-batch, --gradient-checkpointing and --loss-chunk take less memory and give the same training.",
    "T-DEVICE-LOST": "",
    "L-DISK-FULL": "",
    "L-FILE": "",
    "L-DIVERGED": "",
  };
  if (!(error.code in cures)) return error;
  return new SidenetError(error.code, [error.text, cures[error.code], way].filter(Boolean).join(" "), {
    cause: error,
  });
}
