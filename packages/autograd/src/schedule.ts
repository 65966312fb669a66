import { SidenetError } from "@sidenet/tensor";

/** The learning rate of a step, counted from 0. */
export type Schedule = (step: number) => number;

/** How the learning rate changes over the steps of a run. */
export interface ScheduleOptions {
  readonly kind: "constant" | "linear" | "cosine";
  /** The peak learning rate, reached at the end of the warm-up. */
  readonly lr: number;
  /** Steps of linear warm-up: the rate is lr / warmupSteps in step 0 and lr in step warmupSteps - 1. Default 0. */
  readonly warmupSteps?: number;
  /** Steps of the whole run; required unless constant. The decay goes from `lr` in step warmupSteps to `finalLr` at totalSteps. */
  readonly totalSteps?: number;
  /** Default 0. */
  readonly finalLr?: number;
}

function check(name: string, value: number, legal: boolean, wanted: string): void {
  if (legal) return;
  throw new SidenetError("A-SCHEDULE", `the schedule's ${name} is ${value}, wanted ${wanted}.`);
}

const isCount = (value: number): boolean => Number.isInteger(value) && value >= 0;

/** The share of lr - finalLr that is left after the share `progress` of the decay. */
const DECAYS: Record<ScheduleOptions["kind"], (progress: number) => number> = {
  constant: () => 1,
  linear: (progress) => 1 - progress,
  cosine: (progress) => (1 + Math.cos(Math.PI * progress)) / 2,
};

/**
 * A learning-rate schedule: linear warm-up, then a constant rate, or linear or cosine decay. The first step of a warm-up
 * does not have rate 0; past totalSteps the rate stays at `finalLr`. Throws `A-SCHEDULE` for options out of range.
 */
export function makeSchedule(options: ScheduleOptions): Schedule {
  const { kind, lr, warmupSteps = 0, finalLr = 0 } = options;
  const { totalSteps = kind === "constant" ? Number.POSITIVE_INFINITY : Number.NaN } = options;
  if (!Object.hasOwn(DECAYS, kind)) {
    throw new SidenetError(
      "A-SCHEDULE",
      `there is no schedule "${kind}", only ${Object.keys(DECAYS).join(", ")}.`,
    );
  }
  check("lr", lr, Number.isFinite(lr) && lr >= 0, "a finite number >= 0");
  check("finalLr", finalLr, finalLr >= 0 && finalLr <= lr, `a number from 0 to lr = ${lr}`);
  check("warmupSteps", warmupSteps, isCount(warmupSteps), "a whole number >= 0");
  const countsSteps = kind === "constant" ? totalSteps > 0 : isCount(totalSteps) && totalSteps > 0;
  check("totalSteps", totalSteps, countsSteps, `a whole number > 0 for a ${kind} schedule`);
  check("warmupSteps", warmupSteps, warmupSteps <= totalSteps, `at most totalSteps = ${totalSteps}`);
  const decay = DECAYS[kind];
  return (step) => {
    check("step", step, isCount(step), "a whole number >= 0");
    if (step < warmupSteps) return (lr * (step + 1)) / warmupSteps;
    if (kind === "constant") return lr;
    if (step >= totalSteps) return finalLr;
    return finalLr + (lr - finalLr) * decay((step - warmupSteps) / (totalSteps - warmupSteps));
  };
}
