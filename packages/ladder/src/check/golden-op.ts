/** Definitions of golden operations: a schema of parameters, and the computation. */
import type { Device, Ops, Tensor } from "@sidenet/tensor";
import type * as z from "zod";

/** Operands by name, on the device. */
export interface Inputs {
  /** Throws `SkipCase` when the case does not have it. */
  need(name: string): Tensor;
  find(name: string): Tensor | null;
}

/** The arguments of an operation. */
export interface OpCall<P> {
  readonly device: Device;
  /** A tape where gradients are wanted, otherwise the device's ops. */
  readonly ops: Ops;
  readonly inputs: Inputs;
  readonly params: P;
}

/** Outputs by golden name. A list of tensors is compared as one tensor, stacked along a new first axis. */
export type Outputs = Readonly<Record<string, Tensor | readonly Tensor[]>>;

/** One operation of the golden cases. */
export interface GoldenOp<P = unknown> {
  /** The fields of `params.json` besides tolerances. */
  readonly params: z.ZodType<P>;
  /** Inputs that are f32 even when the others are f16. */
  readonly alwaysF32?: readonly string[];
  /** Float inputs of which a case expects no gradient. */
  readonly frozen?: readonly string[];
  readonly run: (call: OpCall<P>) => Outputs;
}

/** Checks the types of an operation against its parameters; the table holds operations with any parameters. */
export const define = <P>(op: GoldenOp<P>): GoldenOp => op as GoldenOp;
