/** What a golden operation is: parameters that are checked, and the computation. */
import type { Device, Ops, Tensor } from "@sidenet/tensor";
import type { z } from "zod";

/** Operands by name, on the device. */
export interface Inputs {
  /** Throws `SkipCase` when the case does not bring it. */
  need(name: string): Tensor;
  find(name: string): Tensor | null;
}

/** What an operation is run with. */
export interface OpCall<P> {
  readonly device: Device;
  /** A tape where gradients are wanted, otherwise the device's ops. */
  readonly ops: Ops;
  readonly inputs: Inputs;
  readonly params: P;
}

/** Outputs by golden name. Several tensors stand for one, stacked along a new first axis. */
export type Outputs = Readonly<Record<string, Tensor | readonly Tensor[]>>;

/** One operation of the golden cases. */
export interface GoldenOp<P = unknown> {
  /** What `params.json` must hold besides the tolerances. */
  readonly params: z.ZodType<P>;
  /** Inputs that are f32 whatever the others are. */
  readonly alwaysF32?: readonly string[];
  readonly run: (call: OpCall<P>) => Outputs;
}

/** Types a row against its own parameters; the table holds rows of any. */
export const define = <P>(op: GoldenOp<P>): GoldenOp => op as GoldenOp;
