import type { Tensor } from "./tensor.ts";

/** What `Device.repeat` knows a call by. */
export interface RepeatCall {
  /** What the body belongs to. What was recorded is forgotten with it. */
  readonly owner: object;
  /** All that commands depend on, such as the shapes of the inputs. */
  readonly key: string;
  /** Tensors that differ from call to call. */
  readonly inputs: readonly Tensor[];
}
