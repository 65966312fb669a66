import { SidenetError } from "@sidenet/tensor";
import { HeldOutLossError } from "./run-parts.ts";

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

/** "1 step", "2 steps". */
export const inSteps = (count: number): string => (count === 1 ? "1 step" : `${count} steps`);

/** Whether the run can go on from its last checkpoint. `savedStep`: null if there is none. */
function checkpointHint(error: SidenetError, step: number, savedStep: number | null): string {
  if (savedStep === null) return "No checkpoint had been written.";
  const checkpoint = `The checkpoint after ${inSteps(savedStep)}`;
  return error instanceof HeldOutLossError && savedStep === step
    ? `${checkpoint} has the same loss: start anew with --overwrite.`
    : `${checkpoint} is intact: continue from it with --resume.`;
}

/** The error of a run that had done `step` steps, with its cure and the checkpoint to resume from; any other error as it is. */
export function withResumeHint(error: unknown, step: number, savedStep: number | null): unknown {
  if (!(error instanceof SidenetError) || !(error.code in RESUMABLE)) return error;
  const hint = checkpointHint(error, step, savedStep);
  const text = [error.text, RESUMABLE[error.code], hint].filter(Boolean).join(" ");
  return new SidenetError(error.code, text, { cause: error });
}
