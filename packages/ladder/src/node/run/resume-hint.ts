import { SidenetError } from "@sidenet/tensor";

/** The errors after which a run can be resumed, with what else helps against each. */
const RESUMABLE: Readonly<Record<string, string>> = {
  "T-OUT-OF-MEMORY":
    "--micro-batch, --gradient-checkpointing and --loss-chunk take less memory and give the same training.",
  "T-DEVICE-LOST": "",
  "L-DISK-FULL": "",
  "L-FILE": "",
  "L-DIVERGED": "",
  "L-TOO-LONG": "",
};

/** The error with its cure and the checkpoint to resume from, null if there is none; any other error as it is. */
export function withResumeHint(error: unknown, savedStep: number | null): unknown {
  if (!(error instanceof SidenetError) || !(error.code in RESUMABLE)) return error;
  const steps = savedStep === 1 ? "1 step" : `${savedStep} steps`;
  const checkpoint =
    savedStep === null
      ? "No checkpoint had been written."
      : `The checkpoint after ${steps} is intact: continue from it with --resume.`;
  const text = [error.text, RESUMABLE[error.code], checkpoint].filter(Boolean).join(" ");
  return new SidenetError(error.code, text, { cause: error });
}
