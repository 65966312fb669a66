import { CpuDevice, MetaDevice, ParamStore, TestRandom } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ladderConfig, xladderConfig } from "../src/methods/ladder-config.ts";
import { initializeAdapter, makeAdapter } from "../src/methods/method.ts";
import { measureImportance, prunedValues, sourceBlocks } from "../src/methods/pruned-init.ts";
import { type BlockImportance, chooseBlock, chooseChannels, largest, NONE } from "../src/methods/pruning.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import { type SideConfig, sideBlockShape, sideParameters } from "../src/methods/side-config.ts";
import { batchLoss, type LabeledBatch } from "../src/model/batch-loss.ts";
import { blockParameters, PROJECTIONS } from "../src/model/block.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { Decoder, decoderParameters, layerName } from "../src/model/decoder.ts";
import { quantizeNf4 } from "../src/model/nf4-weight.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";
import { Trainer } from "../src/training/trainer.ts";
import { drawBatch, drawModel, drawSide, randomDecoder } from "./tiny-model.ts";

const runs = (numRuns: number) => ({
  numRuns: Number(process.env.SIDENET_RUNS ?? numRuns),
  seed: Number(process.env.SIDENET_SEED ?? 20260101),
});
const drawn = fc.nat();
const PLACES = Object.keys(PROJECTIONS) as (keyof typeof PROJECTIONS)[];

/** Importance of a block whose every weight has one: [out, in] values by layer, summed plainly. */
async function plainImportance(
  decoder: Decoder,
  layer: number,
  of: (name: string, values: Float32Array) => ArrayLike<number>,
): Promise<BlockImportance> {
  const entries = [];
  for (const place of PLACES) {
    const name = layerName(layer, `${PROJECTIONS[place]}.weight`);
    const w = decoder.weights.get(name);
    const values = of(name, (await w.read()) as Float32Array);
    const [out, inner] = w.shape;
    const rows = new Float64Array(out);
    const columns = new Float64Array(inner);
    for (let o = 0; o < out; o++) {
      for (let i = 0; i < inner; i++) {
        rows[o] += values[o * inner + i];
        columns[i] += values[o * inner + i];
      }
    }
    entries.push([place, { rows, columns }]);
  }
  return Object.fromEntries(entries) as BlockImportance;
}

const absolute = (_name: string, values: Float32Array) => values.map(Math.abs);
const total = (values: ArrayLike<number>, indices: readonly number[]): number =>
  indices.reduce((sum, i) => sum + (i === NONE ? 0 : values[i]), 0);

function drawPruned(pick: TestRandom): { model: ModelConfig; config: SideConfig } {
  const model = drawModel(pick);
  return { model, config: { ...drawSide(pick, model), init: "pruned" } };
}

describe("what pruning keeps", () => {
  it("are the largest values, in ascending order, the lower index among equals", () => {
    expect(largest([3, 9, 1, 9, 3], 3)).toEqual([0, 1, 3]);
    expect(largest([1, 2], 4)).toEqual([0, 1, NONE, NONE]);
    fc.assert(
      fc.property(fc.array(fc.nat(20), { minLength: 1 }), fc.nat(12), (values, count) => {
        const kept = largest(values, count);
        const real = kept.filter((i) => i !== NONE);
        expect(kept.length).toBe(count);
        expect(real).toEqual([...new Set(real)].sort((a, b) => a - b));
        const least = Math.min(...real.map((i) => values[i]));
        expect(values.every((value, i) => real.includes(i) || value <= least)).toBe(true);
      }),
    );
  });

  it("is, of all choices that a side network could make, the one of the largest importance", async () => {
    await fc.assert(
      fc.asyncProperty(drawn, async (seed) => {
        const pick = new TestRandom(seed);
        const { model, config } = drawPruned(pick);
        using decoder = randomDecoder(new CpuDevice(), model, seed);
        const importance = await plainImportance(decoder, 0, absolute);
        const side = sideBlockShape(config, model);
        const choice = chooseBlock(model, side, importance);
        const { q, k, v, o, gate, up, down } = importance;

        const channels = Float64Array.from(gate.rows, (x, i) => x + up.rows[i] + down.columns[i]);
        expect(choice.intermediate).toEqual(largest(channels, config.intermediate_size));

        // Heads: query heads that share a key head here share one there, and no other group of them weighs more.
        const c = model.headDim;
        const perKey = model.numAttentionHeads / model.numKeyValueHeads;
        const perSideKey = side.numAttentionHeads / side.numKeyValueHeads;
        const headOf = (index: number) => Math.floor(index / c);
        const heads = Array.from({ length: side.numAttentionHeads }, (_, h) =>
          choice.query[h * side.headDim] === NONE ? NONE : headOf(choice.query[h * side.headDim]),
        );
        for (const [h, head] of heads.entries()) {
          if (head === NONE) continue;
          const key = choice.key[Math.floor(h / perSideKey) * side.headDim];
          expect(headOf(key)).toBe(Math.floor(head / perKey));
        }
        const dimsOf = (head: number) => Array.from({ length: c }, (_, i) => head * c + i);
        const weight = (head: number) => total(q.rows, dimsOf(head)) + total(o.columns, dimsOf(head));
        const shared = (head: number) => {
          const dims = dimsOf(Math.floor(head / perKey));
          return total(k.rows, dims) + total(v.rows, dims);
        };
        const groups = Array.from({ length: side.numKeyValueHeads }, (_, g) =>
          heads.slice(g * perSideKey, (g + 1) * perSideKey).filter((head) => head !== NONE),
        ).filter((group) => group.length > 0);
        const ascending = (values: readonly number[]) => [...values].sort((a, b) => a - b);
        for (const group of [...groups, groups.map(([first]) => first)])
          expect(group).toEqual(ascending(group));
        if (perSideKey === 2 && perKey > 1) {
          const all = Array.from({ length: model.numAttentionHeads }, (_, head) => head);
          const pairs = all.flatMap((a) =>
            all.filter((b) => b > a && Math.floor(b / perKey) === Math.floor(a / perKey)).map((b) => [a, b]),
          );
          const weights = pairs.map(([a, b]) => weight(a) + weight(b) + shared(a));
          const best = pairs[weights.indexOf(Math.max(...weights))];
          expect(groups.map(String)).toContain(String(best));
        }
        if (perSideKey === 1 && side.numKeyValueHeads <= model.numAttentionHeads) {
          const whole = Array.from(
            { length: model.numAttentionHeads },
            (_, head) => weight(head) + shared(head),
          );
          expect([...heads].sort((a, b) => a - b)).toEqual(largest(whole, side.numAttentionHeads));
        }

        // Rope's pairs stay pairs, and hold the largest sums over the heads that were taken.
        const half = side.headDim / 2;
        const pairs = choice.headDims.slice(0, half);
        expect(choice.headDims.slice(half)).toEqual(pairs.map((i) => (i === NONE ? NONE : i + c / 2)));
        const keys = [...new Set(choice.key.filter((i) => i !== NONE).map(headOf))];
        if (side.numKeyValueHeads === 1) {
          const taken = heads.filter((head) => head !== NONE);
          const pairWeight = Array.from({ length: c / 2 }, (_, i) => {
            const both = (head: number) => [head * c + i, head * c + i + c / 2];
            return (
              taken.reduce((sum, head) => sum + total(q.rows, both(head)), 0) + total(k.rows, both(keys[0]))
            );
          });
          expect(pairs).toEqual(largest(pairWeight, half));
          const valueWeight = Array.from({ length: c }, (_, i) =>
            taken.reduce((sum, head) => sum + o.columns[head * c + i], v.rows[keys[0] * c + i]),
          );
          const dims = largest(valueWeight, side.headDim);
          expect(choice.value).toEqual(dims.map((i) => (i === NONE ? NONE : keys[0] * c + i)));
        }
        expect(choice.value.length).toBe(side.numKeyValueHeads * side.headDim);
        expect(choice.output.length).toBe(side.numAttentionHeads * side.headDim);
      }),
      runs(60),
    );
  });

  it("reads the hidden state that its side layer reads, and the last block's after that", () => {
    const model = {
      ...drawModel(new TestRandom(1)),
      numHiddenLayers: 8,
      hiddenSize: 64,
      numAttentionHeads: 2,
    };
    const ladder = ladderConfig(model, "m", { layers: 4 });
    expect(ladder.rungs).toEqual([2, 4, 6, 8]);
    expect(sourceBlocks(ladder, model)).toEqual([2, 4, 6, 7]);
    const xladder = xladderConfig(model, "m", { delta: 2, layers: 5 });
    expect(xladder.rungs).toEqual([6, 7]);
    expect(sourceBlocks(xladder, model)).toEqual([6, 7, 7, 7, 7]);
    expect(sourceBlocks(ladderConfig(model, "m", { rungs: [0, 2], layers: 5 }), model)).toEqual([
      0, 2, 3, 4, 5,
    ]);
    const first = { ...ladder, rungs: [], initial_rung: true };
    expect(sourceBlocks(first, model)).toEqual([0, 1, 2, 3]);
  });
});

describe("a pruned side network", () => {
  it("holds exactly the chosen values of the backbone, and its random ones where that has no more", async () => {
    await fc.assert(
      fc.asyncProperty(drawn, async (seed) => {
        const pick = new TestRandom(seed);
        const { model, config } = drawPruned(pick);
        const device = new CpuDevice();
        using decoder = randomDecoder(device, model, seed);
        const values = await prunedValues(decoder, config);
        const sources = sourceBlocks(config, model);
        const byLayer = new Map<number, BlockImportance>();
        for (const layer of new Set(sources))
          byLayer.set(layer, await plainImportance(decoder, layer, absolute));
        const channels = chooseChannels([...byLayer.values()], config.hidden_size);
        const sums = new Float64Array(model.hiddenSize);
        for (const { q, k, v, o, gate, up, down } of byLayer.values()) {
          for (let ch = 0; ch < sums.length; ch++) {
            for (const matrix of [q, k, v, gate, up]) sums[ch] += matrix.columns[ch];
            for (const matrix of [o, down]) sums[ch] += matrix.rows[ch];
          }
        }
        expect(channels).toEqual(largest(sums, config.hidden_size));

        const layer = config.num_hidden_layers;
        const choice = chooseBlock(model, sideBlockShape(config, model), byLayer.get(sources[layer - 1])!);
        const down = (await decoder.weights
          .get(layerName(sources[layer - 1], "mlp.down_proj.weight"))
          .read()) as Float32Array;
        const pruned = values.get(`ladder.layers.${layer}.mlp.down_proj.weight`)!;
        for (let r = 0; r < config.hidden_size; r++) {
          for (let i = 0; i < config.intermediate_size; i++) {
            const [row, column] = [channels[r], choice.intermediate[i]];
            if (row === NONE || column === NONE) continue;
            expect(pruned[r * config.intermediate_size + i]).toBe(
              down[row * model.intermediateSize + column],
            );
          }
        }
        const rung = Array.from(values.get("ladder.rungs.1.down.weight")!);
        expect(rung).toEqual(
          channels.flatMap((channel) =>
            Array.from({ length: model.hiddenSize }, (_, c) => Number(c === channel)),
          ),
        );
        const shapes = new Map(
          sideParameters(config, model).map(({ name, shape }) => [name, shape.reduce((a, b) => a * b, 1)]),
        );
        for (const [name, array] of values) expect(array.length, name).toBe(shapes.get(name));
        for (const name of shapes.keys())
          expect(values.has(name)).toBe(/^ladder\.(layers|rungs\.\d+\.down)/.test(name));
        decoder.dispose();
        expect(device.memory.liveCount).toBe(0);
      }),
      runs(25),
    );
  });

  it("of the backbone's own sizes holds the backbone's blocks", async () => {
    for (let seed = 0; seed < 8; seed++) {
      const pick = new TestRandom(seed);
      const { model, config } = drawPruned(pick);
      using decoder = randomDecoder(new CpuDevice(), model, seed);
      const whole = {
        ...config,
        hidden_size: model.hiddenSize,
        intermediate_size: model.intermediateSize,
        num_attention_heads: model.numAttentionHeads,
        num_key_value_heads: model.numKeyValueHeads,
        head_dim: model.headDim,
      };
      const values = await prunedValues(decoder, whole);
      for (const [k, layer] of sourceBlocks(whole, model).entries()) {
        for (const { name } of blockParameters(model)) {
          const block = await decoder.weights.get(layerName(layer, name)).read();
          expect(values.get(`ladder.layers.${k + 1}.${name}`), name).toEqual(block);
        }
      }
    }
  });

  it("reads weights in f16 and in NF4 as what they stand for", async () => {
    const pick = new TestRandom(5);
    const { model, config } = drawPruned(pick);
    const device = new CpuDevice();
    for (const kind of ["f16", "nf4"] as const) {
      const [stored, dense] = await storedAs(kind, device, model);
      expect(await prunedValues(stored, config)).toEqual(await prunedValues(dense, config));
      stored.dispose();
      dense.dispose();
    }
    expect(device.memory.liveCount).toBe(0);
  });

  it("still leaves the model equal to its backbone at the start, and learns", async () => {
    const device = new CpuDevice();
    const pick = new TestRandom(11);
    const model = { ...drawModel(pick), numHiddenLayers: 3 };
    using decoder = randomDecoder(device, model);
    const batch = drawBatch(pick, model);
    for (const importance of ["l1", "fisher"] as const) {
      const options = { method: "ladder", ladder: { reduction: 2, init: "pruned", importance } } as const;
      using adapter = await initializeAdapter(options, decoder, "tiny", () => [batch]);
      expect(await evaluateLoss(decoder, adapter, [batch])).toBe(await evaluateLoss(decoder, null, [batch]));
      using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.01 });
      const losses: number[] = [];
      for (let step = 0; step < 10; step++) losses.push((await trainer.step(batch)).loss);
      expect(losses[9]).toBeLessThan(losses[0] - 0.1);
    }
  });

  it("is planned with the sizes of a random one, and made by nothing that cannot read the backbone", () => {
    const model = drawModel(new TestRandom(2));
    const options = { method: "ladder", ladder: { reduction: 2, init: "pruned" } } as const;
    const meta = new MetaDevice();
    using planned = randomDecoder(meta, model);
    using adapter = makeAdapter(options, planned, "tiny");
    expect(adapter.configJson?.("")).toMatchObject({ init: "pruned" });
    using decoder = randomDecoder(new CpuDevice(), model);
    expect(() => makeAdapter(options, decoder, "tiny")).toThrow(/L-PRUNED/);
  });
});

/** A decoder whose blocks' matrices lie in f16 or NF4, and one of the values that these stand for. */
async function storedAs(
  kind: "f16" | "nf4",
  device: CpuDevice,
  model: ModelConfig,
): Promise<[stored: Decoder, dense: Decoder]> {
  using plain = randomDecoder(device, model);
  const [store, dense] = [new ParamStore(device, "weights"), new ParamStore(device, "weights")];
  for (const { name, shape } of decoderParameters(model)) {
    const w = plain.weights.get(name);
    if (!name.endsWith("proj.weight")) {
      for (const to of [store, dense]) to.add(name, device.ops.cast(w, { to: "f32" }));
    } else if (kind === "f16") {
      const half = store.add(name, device.ops.cast(w, { to: "f16" }));
      dense.add(name, device.ops.cast(half, { to: "f32" }));
    } else {
      quantizeNf4(store, name, (await w.read()) as Float32Array);
      const [codes, table, absmax, scales] = ["", ".table", ".absmax", ".scales"].map((part) =>
        store.get(name + part),
      );
      dense.add(name, device.ops.nf4Dequantize(codes, table, absmax, scales, { shape }));
    }
  }
  return [new Decoder(model, store), new Decoder(model, dense)];
}

describe("Fisher importance", () => {
  it("is the sum of squared derivatives of each batch's loss", async () => {
    const device = new CpuDevice({ precision: "f64" });
    const pick = new TestRandom(3);
    const model = { ...drawModel(pick), numHiddenLayers: 2 };
    using decoder = randomDecoder(device, model);
    const batches = [drawBatch(pick, model), drawBatch(pick, model)];
    const [layer, place] = [1, "k"] as const;
    const name = layerName(layer, `${PROJECTIONS[place]}.weight`);
    const w = decoder.weights.get(name);
    const [out, inner] = w.shape;
    const values = Float64Array.from((await w.read()) as Float64Array);
    const lossWith = async (batch: LabeledBatch, at: number, step: number): Promise<number> => {
      const moved = values.slice();
      moved[at] += step;
      using shifted = randomDecoder(device, model);
      const store = new ParamStore(device, "weights");
      for (const [other, tensor] of shifted.weights)
        store.add(other, other === name ? device.tensor(moved, w.shape) : device.retain(tensor));
      using changed = new Decoder(model, store);
      using loss = device.scope(() =>
        batchLoss(changed, device.ops, residualStream(changed, null, changed.prepare(batch)), batch),
      );
      return loss.item();
    };
    const rows = new Float64Array(out);
    const columns = new Float64Array(inner);
    const step = 1e-4;
    for (const batch of batches) {
      for (let at = 0; at < values.length; at++) {
        const slope = ((await lossWith(batch, at, step)) - (await lossWith(batch, at, -step))) / (2 * step);
        rows[Math.floor(at / inner)] += slope ** 2;
        columns[at % inner] += slope ** 2;
      }
    }
    const measured = await measureImportance(decoder, new Set([0, layer]), {
      importance: "fisher",
      calibration: batches,
    });
    const found = measured.get(layer)![place];
    const most = Math.max(...rows);
    for (const [i, row] of rows.entries()) expect(Math.abs(found.rows[i] - row)).toBeLessThan(1e-5 * most);
    for (const [i, column] of columns.entries())
      expect(Math.abs(found.columns[i] - column)).toBeLessThan(1e-5 * most);
    expect(measured.get(0)).toBeDefined();
  });

  it("without data is refused, with nothing left on the device", async () => {
    const device = new CpuDevice();
    const { model, config } = drawPruned(new TestRandom(4));
    using decoder = randomDecoder(device, model);
    const before = device.memory.liveCount;
    await expect(prunedValues(decoder, config, { importance: "fisher" })).rejects.toMatchObject({
      code: "L-CALIBRATION",
    });
    expect(device.memory.liveCount).toBe(before);
  });

  it("leaves nothing on the device when a later batch fails", async () => {
    const device = new CpuDevice();
    const pick = new TestRandom(6);
    const { model, config } = drawPruned(pick);
    using decoder = randomDecoder(device, model);
    const before = device.memory.liveCount;
    const good = drawBatch(pick, model);
    const bad = { ...good, labels: Array.from(good.labels, () => model.vocabSize) };
    const measured = prunedValues(decoder, config, { importance: "fisher", calibration: [good, bad] });
    await expect(measured).rejects.toMatchObject({ code: "L-TOKEN" });
    expect(device.memory.liveCount).toBe(before);
  });
});
