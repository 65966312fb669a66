/** The state of a run that a checkpoint holds beside its tensors. */
import * as z from "zod";

const count = z.int().min(0);
const sample = z.strictObject({ prompt: z.string(), text: z.string() });

export const runStateSchema = z.strictObject({
  version: z.literal(1),
  counters: z.strictObject({ step: count, passes: count, updates: count }),
  /** The position in the stream of batches. */
  data: z.json(),
  tokens: count,
  seconds: z.number().min(0),
  flops: z.number().min(0),
  /** Number of consecutive steps so far that were skipped because their loss was not finite. */
  skippedInARow: count,
  /** The step of the last evaluation, and the number of consecutive evaluations without a better loss. */
  evaluation: z.strictObject({ step: count.nullable(), withoutGain: count }),
  /** The best evaluation, whose adapter was saved. */
  best: z.strictObject({ step: count, loss: z.number() }).nullable(),
  /** Figures from before the first step. */
  start: z.strictObject({
    /** Records of each file, and how often each of them appears in an epoch: they fix the order of the data. */
    mixture: z.string().optional(),
    /** Hash of the held-out records, of the model's config and files, and of how it is stored: with another one, the losses below are measured anew. */
    comparison: z.string().optional(),
    /** Null where nothing is held out. */
    frozenEvalLoss: z.number().nullable(),
    initialEvalLoss: z.number().nullable(),
    sample: sample.nullable(),
  }),
  /** Device that computed so far: another one's rounding may differ. */
  device: z.string(),
});

/**
 * How far a run has come; steps are counted from 0, so `counters.step` is the next one.
 * @interface
 */
export type RunState = z.infer<typeof runStateSchema>;

/** The state of a run that has done nothing yet. */
export function newRunState(start: RunState["start"], device: string, data: RunState["data"]): RunState {
  return {
    version: 1,
    counters: { step: 0, passes: 0, updates: 0 },
    data,
    tokens: 0,
    seconds: 0,
    flops: 0,
    skippedInARow: 0,
    evaluation: { step: null, withoutGain: 0 },
    best: null,
    start,
    device,
  };
}
