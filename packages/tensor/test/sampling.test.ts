import { CpuDevice, type Device } from "@sidenet/tensor";
import { afterAll, describe, expect, it } from "vitest";
import { gpuAvailable, openTestGpu } from "./support.ts";

const devices: [string, () => Promise<Device>][] = [["cpu", async () => new CpuDevice()]];
if (gpuAvailable) devices.push(["webgpu", openTestGpu]);

type SampleAttrs = NonNullable<Parameters<Device["ops"]["sampleLogits"]>[2]>;

async function sample(
  device: Device,
  rows: readonly (readonly number[])[],
  attrs: SampleAttrs,
  recent: readonly number[] | null = null,
): Promise<number[]> {
  using logits = device.tensor(rows.flat(), [rows.length, rows[0].length]);
  using ids =
    recent &&
    device.tensor(
      rows.flatMap(() => recent),
      [rows.length, recent.length],
      { dtype: "i32" },
    );
  using id = device.ops.sampleLogits(logits, ids, attrs);
  return [...(await id.read())];
}

const LOGITS = [0.5, 2, -1, 1.25, 0, -3, 1, 2.5];
const DRAWS = 4000;
const repeated = Array.from({ length: DRAWS }, () => LOGITS);

/** Share of the weight of each token where only `kept` are, at a temperature. */
function shares(kept: readonly number[], temperature = 1): number[] {
  const weights = LOGITS.map((logit, v) => (kept.includes(v) ? Math.exp(logit / temperature) : 0));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / total);
}

describe.each(devices)("sampleLogits on %s", (_, open) => {
  let device: Device;
  const use = async (): Promise<Device> => {
    device ??= await open();
    return device;
  };
  afterAll(() => device?.dispose());

  // The order of falling logits: 7 1 3 6 0 4 2 5, with shares .392 .238 .112 .087 .053 .032 .012 .002 (of .93)
  it.each<[string, SampleAttrs, number[], number]>([
    ["all at temperature 1", {}, [0, 1, 2, 3, 4, 5, 6, 7], 1],
    ["all at temperature 2", { temperature: 2 }, [0, 1, 2, 3, 4, 5, 6, 7], 2],
    ["topK 3", { topK: 3 }, [1, 3, 7], 1],
    ["topP 0.6", { topP: 0.6 }, [1, 7], 1],
    ["minP 0.2", { minP: 0.2 }, [1, 3, 6, 7], 1],
    ["topK before topP: 0.6 of what two leave is one", { topK: 2, topP: 0.6 }, [7], 1],
    ["topP before minP", { topP: 0.6, minP: 0.2 }, [1, 7], 1],
  ])("draws as often as the weights say: %s", async (_name, attrs, kept, temperature) => {
    const ids = await sample(await use(), repeated, { seed: 11, ...attrs });
    const counts = LOGITS.map((_, v) => ids.filter((id) => id === v).length);
    const wanted = shares(kept, temperature);
    let chiSquare = 0;
    for (const [v, share] of wanted.entries()) {
      if (share === 0) expect(counts[v], `token ${v} is cut`).toBe(0);
      else chiSquare += (counts[v] - share * DRAWS) ** 2 / (share * DRAWS);
    }
    expect(chiSquare).toBeLessThan(24.3); // 7 degrees of freedom: one seed in a thousand is above
  });

  it("is greedy at temperature 0, near it, and with topK 1; the first of equals wins at 0", async () => {
    const on = await use();
    const rows = [LOGITS, [0, 3, 1, 3, 3, 2, 1, -1], LOGITS.map((x) => -x)];
    expect(await sample(on, rows, { temperature: 0, seed: 5 })).toEqual([7, 1, 5]);
    for (const attrs of [{ temperature: 1e-6 }, { topK: 1 }, { topP: 1e-6 }, { minP: 1 }]) {
      const [a, b, c] = await sample(on, rows, { ...attrs, seed: 5 });
      expect([a, c], JSON.stringify(attrs)).toEqual([7, 5]);
      expect([1, 3, 4], "equals stay together").toContain(b);
    }
  });

  it("shrinks the logits of recent ids once, and ignores ids that are none", async () => {
    const on = await use();
    const greedy = { temperature: 0, repetitionPenalty: 2 };
    expect(await sample(on, [LOGITS], greedy, [7, 7, 7, -1, 8])).toEqual([1]); // 2.5 / 2 < 2
    expect(await sample(on, [LOGITS], greedy, [7, 1])).toEqual([3]); // the first of 1.25 and 2.5 / 2
    expect(await sample(on, [[-1, -1.5]], greedy, [0])).toEqual([1]); // -1 · 2 < -1.5
    expect(await sample(on, [LOGITS], greedy, [])).toEqual([7]);
  });

  it("gives a row the number of its place in the stream, whatever rows are beside it", async () => {
    const on = await use();
    const together = await sample(on, repeated.slice(0, 40), { seed: 3, stream: 2, offset: 6 });
    expect(await sample(on, repeated.slice(0, 40), { seed: 3, stream: 2, offset: 6 })).toEqual(together);
    const single: number[] = [];
    for (let n = 0; n < 40; n++)
      single.push(...(await sample(on, [LOGITS], { seed: 3, stream: 2, offset: 6 + n })));
    expect(single).toEqual(together);
    expect(await sample(on, repeated.slice(0, 40), { seed: 4, stream: 2, offset: 6 })).not.toEqual(together);
  });

  it("refuses what it cannot draw from", async () => {
    const on = await use();
    for (const attrs of [
      { temperature: -1 },
      { temperature: 1e-9 },
      { topK: 1.5 },
      { topP: 0 },
      { minP: 2 },
      { repetitionPenalty: 0 },
      { seed: -1 },
      { offset: 2 ** 32 },
    ])
      await expect(sample(on, [LOGITS], attrs), JSON.stringify(attrs)).rejects.toThrow(/sampleLogits/);
    await expect(sample(on, [[]], {})).rejects.toThrow(/no logits/);
  });
});
