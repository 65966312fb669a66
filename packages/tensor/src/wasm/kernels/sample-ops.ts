/** Sampling of the next token. */
import { type SampleAttrs, sampleParams, uniformAt } from "../../ops/sampling.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import { widened } from "./f16-windows.ts";
import { alone } from "./work.ts";

/** Rough nanoseconds for a logit: its weight, and some sixty reads during the bisections. */
const NS_PER_LOGIT = 12;

export const sampleLogits: WasmOp = (
  k,
  { logits, recent, id }: { logits: Tensor; recent: Tensor | null; id: Tensor },
  { N, V, R },
  attrs: SampleAttrs,
) => {
  const values = widened(k, logits);
  const [z, w] = [k.temp([V]), k.temp([V])];
  const args = { z, w, r: recent === null ? 0 : R, ...sampleParams(attrs, V) };
  for (let n = 0; n < N; n++) {
    const row = { start: n, count: 1 };
    const own = {
      logits: k.rows(values, N, row),
      recent: recent && k.rows(recent, N, row),
      id: k.rows(id, N, row),
    };
    const u = uniformAt(attrs.offset + n, attrs);
    k.run("sampleRow", { ...args, ...own, u }, alone(V * NS_PER_LOGIT));
  }
  return true;
};
