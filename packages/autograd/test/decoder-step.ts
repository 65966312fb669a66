/** A training step of a small decoder on any device, in Node or in a page. */
import { type Device, ParamStore, TestRandom } from "@sidenet/tensor";
import { AdamW, clipGlobalNorm, Tape } from "../src/index.ts";

const B = 2; // batch
const H = 4; // query heads
const G = 2; // key-value heads
export const C = 24; // width

/** Tokens, vocabulary, head size and width. */
const extentsOf = (size: number) => ({ T: 12 * size, V: 40 * size, D: 6 * size, width: C * size });

function parameters(device: Device, size: number): ParamStore {
  const { V, D, width } = extentsOf(size);
  const shapes: Record<string, readonly number[]> = {
    embed: [V, width],
    gain: [width],
    head: [V, width],
    q: [H * D, width],
    k: [G * D, width],
    v: [G * D, width],
    vBias: [G * D],
    o: [width, H * D],
    gate: [2 * width, width],
    up: [2 * width, width],
    down: [width, 2 * width],
  };
  const store = new ParamStore(device, "adapter");
  const pick = new TestRandom(7);
  for (const [name, shape] of Object.entries(shapes)) {
    const count = shape.reduce((a, b) => a * b, 1);
    store.add(name, device.tensor(pick.normals(count, 0.3 / Math.sqrt(size)), shape));
  }
  return store;
}

/**
 * A decoder with everything trainable and its weights used in two layers: loss, gradients, and an update, by name. At size 8
 * every matmul is large enough for threads to share it.
 */
export async function decoderStep(device: Device, size = 1): Promise<Map<string, ArrayLike<number>>> {
  const { T, V, D, width } = extentsOf(size);
  const store = parameters(device, size);
  const adamw = new AdamW(store);
  const p = (name: string) => store.get(name);
  const pick = new TestRandom(8);
  using tape = new Tape(device, store);
  const loss = device.scope(() => {
    const ids = device.tensor(pick.ints(B * T, 0, V - 1), [B, T], { dtype: "i32" });
    const targets = device.tensor(pick.ints(B * T, 0, V - 1), [B * T], { dtype: "i32" });
    const [cos, sin] = [Math.cos, Math.sin].map((f) =>
      device.tensor(
        Float64Array.from({ length: (T * D) / 2 }, (_, i) => f(i * 0.3)),
        [T, D / 2],
      ),
    );
    const heads = (x: ReturnType<typeof p>, n: number) => tape.reshape(x, { shape: [B, T, n, D] });
    let x = tape.embedding(ids, p("embed"));
    for (let layer = 0; layer < 2; layer++) {
      const h = tape.rmsNorm(x, p("gain"));
      const q = tape.rope(heads(tape.linear(h, p("q")), H), cos, sin);
      const k = tape.rope(heads(tape.linear(h, p("k")), G), cos, sin);
      const y = tape.attention(q, k, heads(tape.linear(h, p("v"), p("vBias")), G));
      x = tape.add(x, tape.linear(tape.reshape(y, { shape: [B, T, H * D] }), p("o")));
      const f = tape.rmsNorm(x, p("gain"));
      x = tape.add(
        x,
        tape.linear(tape.siluMul(tape.linear(f, p("gate")), tape.linear(f, p("up"))), p("down")),
      );
    }
    return tape.lmHeadLoss(tape.reshape(x, { shape: [B * T, width] }), p("head"), targets);
  });
  const gradients = tape.backward(loss);
  const values = new Map<string, ArrayLike<number>>();
  for (const [name, leaf] of store) values.set(`d${name}`, await gradients.get(leaf)!.read());
  const { factor, norm } = clipGlobalNorm(gradients, 0.5);
  adamw.step(gradients, { lr: 0.01, gradScale: factor });
  for (const [name, leaf] of store) values.set(name, await leaf.read());
  values.set("norm", await norm.read());
  values.set("loss", await loss.read());
  for (const tensor of [loss, factor, norm, ...gradients.values()]) tensor.dispose();
  adamw.dispose();
  store.dispose();
  return values;
}
