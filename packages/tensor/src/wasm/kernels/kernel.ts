import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32, i32 } from "../assembler/instructions.ts";
import type { Library } from "./library.ts";

/** What the code of a kernel can use beside its arguments. */
export interface Frame {
  /** The number of the task, 0 .. tasks - 1. */
  readonly task: Local<"i32">;
  /** Address of the thread's own `SCRATCH_BYTES` of memory. */
  readonly scratch: Local<"i32">;
  readonly library: Library;
}

/** Types of arguments by name: i32 for addresses and counts. */
export type ParamTypes = Readonly<Record<string, "i32" | "f32">>;
/** Arguments of type i32. */
export const words = <K extends string>(...names: readonly K[]): Readonly<Record<K, "i32">> =>
  Object.fromEntries(names.map((name) => [name, "i32"])) as Record<K, "i32">;

/** Locals of type i32 by name, such as the arguments that `words` names. */
export type Words<K extends string> = Readonly<Record<K, Local<"i32">>>;

type Params<P extends ParamTypes> = { readonly [K in keyof P]: Local<P[K]> };

/** A kernel: its arguments, and an emitter of the code of one task. */
export interface Kernel {
  readonly params: ParamTypes;
  readonly emit: (f: FunctionBuilder, args: Local<"i32">, frame: Frame) => void;
}

/**
 * Defines a kernel. The host writes its arguments to memory as words in the order of `params`; the code loads them into locals,
 * which `emit` gets by name.
 */
export function defineKernel<const P extends ParamTypes>(
  params: P,
  emit: (f: FunctionBuilder, params: Params<P>, frame: Frame) => void,
): Kernel {
  return {
    params,
    emit(f, args, frame) {
      const entries = Object.entries(params).map(([name, type], i) => [
        name,
        type === "i32" ? f.i32(i32.load(args, 4 * i)) : f.f32(f32.load(args, 4 * i)),
      ]);
      emit(f, Object.fromEntries(entries) as Params<P>, frame);
    },
  };
}
