import { SidenetError } from "@sidenet/tensor";

/** Learning rate of a step; the first step is 0. */
export type Schedule = (step: number) => number;

/** How the learning rate goes over a run, in steps. */
export interface ScheduleOptions {
  readonly kind: "constant" | "linear" | "cosine";
  /** The highest learning rate, which the warm-up reaches. */
  readonly lr: number;
  /** Steps over which the rate rises evenly to `lr`: lr / warmupSteps in step 0, lr in step warmupSteps - 1. */
  readonly warmupSteps?: number;
  /** Steps of the whole run; linear and cosine fall from `lr` in step warmupSteps towards `finalLr` at totalSteps. */
  readonly totalSteps?: number;
  readonly finalLr?: number;
}

function check(name: string, value: number, legal: boolean, wanted: string): void {
  if (legal) return;
  throw new SidenetError("A-SCHEDULE", `the schedule's ${name} is ${value}, wanted ${wanted}.`);
}

const isCount = (value: number): boolean => Number.isInteger(value) && value >= 0;

/** How much of lr - finalLr is left after `progress` of the falling part, both in 0..1. */
const SHAPES: Record<ScheduleOptions["kind"], (progress: number) => number> = {
  constant: () => 1,
  linear: (progress) => 1 - progress,
  cosine: (progress) => (1 + Math.cos(Math.PI * progress)) / 2,
};

/**
 * A learning-rate schedule: linear warm-up, then constant, linear or cosine decay. No step has rate 0 unless `lr` or
 * `finalLr` says so; past totalSteps the rate stays at `finalLr`. Throws `A-SCHEDULE` for options out of range.
 */
export function makeSchedule(options: ScheduleOptions): Schedule {
  const { kind, lr, warmupSteps = 0, finalLr = 0 } = options;
  const { totalSteps = kind === "constant" ? Number.POSITIVE_INFINITY : Number.NaN } = options;
  if (!Object.hasOwn(SHAPES, kind)) {
    throw new SidenetError(
      "A-SCHEDULE",
      `there is no schedule "${kind}", only ${Object.keys(SHAPES).join(", ")}.`,
    );
  }
  check("lr", lr, Number.isFinite(lr) && lr >= 0, "a finite number >= 0");
  check("finalLr", finalLr, finalLr >= 0 && finalLr <= lr, `a number from 0 to lr = ${lr}`);
  check("warmupSteps", warmupSteps, isCount(warmupSteps), "a whole number >= 0");
  const countsSteps = kind === "constant" ? totalSteps > 0 : isCount(totalSteps) && totalSteps > 0;
  check("totalSteps", totalSteps, countsSteps, `a whole number > 0 for a ${kind} schedule`);
  check("warmupSteps", warmupSteps, warmupSteps <= totalSteps, `at most totalSteps = ${totalSteps}`);
  const shape = SHAPES[kind];
  return (step) => {
    check("step", step, isCount(step), "a whole number >= 0");
    if (step < warmupSteps) return (lr * (step + 1)) / warmupSteps;
    if (kind === "constant") return lr;
    if (step >= totalSteps) return finalLr;
    return finalLr + (lr - finalLr) * shape((step - warmupSteps) / (totalSteps - warmupSteps));
  };
}
