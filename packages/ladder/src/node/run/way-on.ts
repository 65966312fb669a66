import { SidenetError } from "@sidenet/tensor";

/** What went wrong, and where the run can go on. */
export function withWayOn(error: unknown, savedStep: number | null): unknown {
  if (!(error instanceof SidenetError)) return error;
  const way =
    savedStep === null
      ? "No checkpoint was written by then."
      : `The checkpoint after ${savedStep} steps is whole: go on from it with --resume.`;
  const cures: Record<string, string> = {
    "T-OUT-OF-MEMORY":
      "--micro-batch, --gradient-checkpointing and --loss-chunk take less memory and train the same.",
    "T-DEVICE-LOST": "",
    "L-DISK-FULL": "",
    "L-FILE": "",
    "L-DIVERGED": "",
  };
  if (!(error.code in cures)) return error;
  const message = error.message.slice(`[${error.code}] `.length);
  return new SidenetError(error.code, [message, cures[error.code], way].filter(Boolean).join(" "), {
    cause: error,
  });
}
