/** Attention, forward and backward, over normal numbers: what its tests run on several devices. */
import { type Device, Random, type Tensor } from "@sidenet/tensor";

/** A call of attention and of its gradients. */
export interface AttentionCall {
  /** B, T, S, H, G, D. */
  readonly dims: readonly number[];
  readonly queryOffset?: number;
  readonly keyMask?: (b: number, s: number) => number;
  readonly segments?: (b: number, s: number) => number;
  /** What number i of row j of an operand is multiplied by. */
  readonly by?: Partial<Record<"q" | "k" | "v" | "dy", (row: number) => number>>;
}

/** All outputs of forward and backward, by name. */
export function runAttention(device: Device, call: AttentionCall): Record<string, Tensor> {
  const { dims, queryOffset = 0, keyMask, segments, by = {} } = call;
  const [B, T, S, H, G, D] = dims;
  return device.scope(() => {
    const vectors = (name: "q" | "k" | "v" | "dy", shape: number[], stream: number): Tensor => {
      const values = new Random(7, stream).normals(shape.reduce((a, b) => a * b, 1));
      return device.tensor(
        values.map((x, i) => x * (by[name]?.(Math.floor(i / D)) ?? 1)),
        shape,
      );
    };
    const ofKeys = (value: AttentionCall["keyMask"], dtype: "u8" | "i32") =>
      value
        ? device.tensor(
            Array.from({ length: B * S }, (_, i) => value(Math.floor(i / S), i % S)),
            [B, S],
            { dtype },
          )
        : null;
    const q = vectors("q", [B, T, H, D], 0);
    const k = vectors("k", [B, S, G, D], 1);
    const v = vectors("v", [B, S, G, D], 2);
    const dy = vectors("dy", [B, T, H, D], 3);
    const masks = [ofKeys(keyMask, "u8"), ofKeys(segments, "i32")];
    const attrs = { queryOffset };
    const { y, lse } = device.run("attention", [q, k, v, ...masks], attrs, ["lse"]);
    const saved = [dy, q, k, v, y, lse, ...masks];
    const { dq } = device.run("attentionBackwardQ", saved, attrs, []);
    const { dk, dv } = device.run("attentionBackwardKV", saved, attrs, []);
    return { y, lse, dq, dk, dv };
  });
}
