/**
 * `init: "pruned"` (methods.md, 2): a side network whose blocks start as the most important rows and columns of the
 * backbone's. Weights are read in any storage format (f32, f16, NF4), one matrix at a time.
 */
import { type Gradients, Tape } from "@sidenet/autograd";
import { ParamStore, SidenetError, type Tensor } from "@sidenet/tensor";
import { batchLoss, type LabeledBatch } from "../model/batch-loss.ts";
import { blockParameters, PROJECTION_NAMES, PROJECTIONS, type ProjectionName } from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { Decoder, decoderParameters, layerName } from "../model/decoder.ts";
import { FullTuning } from "./full-tuning.ts";
import {
  axesOf,
  type BlockImportance,
  type Choice,
  chooseBlock,
  chooseChannels,
  type Importance,
  type MatrixImportance,
  NONE,
  pick,
} from "./pruning.ts";
import { residualStream } from "./residual-stream.ts";
import { type SideConfig, sideBlockShape, sideLayerName, sideParameters } from "./side-config.ts";
import { randomValues } from "./side-init.ts";

/** How the importance of rows and columns is measured. */
export interface PruneOptions {
  /** Default l1. */
  readonly importance?: Importance;
  /** Data for Fisher importance. Each batch is one sample of the gradient, so batches of one row are best. */
  readonly calibration?: readonly LabeledBatch[];
}

/**
 * The backbone block, counted from 0, from which each side layer is pruned: the one that reads the same hidden state H_t. Free
 * layers continue from there, block by block; past the last block, the last one is used.
 */
export function sourceBlocks({ rungs, num_hidden_layers: l }: SideConfig, model: ModelConfig): number[] {
  const last = model.numHiddenLayers - 1;
  const depth = (k: number): number => {
    if (k < rungs.length) return rungs[k];
    return (rungs[rungs.length - 1] ?? 0) + k - Math.max(rungs.length - 1, 0);
  };
  return Array.from({ length: l }, (_, k) => Math.min(depth(k), last));
}

const weightOf = (projection: ProjectionName): string => `${PROJECTIONS[projection]}.weight`;

/** The axis that the sums of all rows, and of all columns, run over. */
const SUMMED_AXIS = { rows: 1, columns: 0 } as const;
type Line = keyof typeof SUMMED_AXIS;
const LINES = Object.keys(SUMMED_AXIS) as Line[];

const sumName = (layer: number, projection: ProjectionName, line: Line): string =>
  `${layer}.${projection}.${line}`;

/** Adds the sum of each row and of each column of `values`, for one matrix of a block, to those in the store; f32. */
function addSums(sums: ParamStore, layer: number, projection: ProjectionName, values: Tensor): void {
  const { ops } = sums.device;
  for (const line of LINES) {
    const name = sumName(layer, projection, line);
    const sum = ops.sum(values, { axis: SUMMED_AXIS[line] });
    if (sums.has(name)) ops.accumulate(sums.get(name), sum);
    else sums.add(name, sum);
  }
}

/** Importance of one block, from the sums in the store. */
async function readImportance(sums: ParamStore, layer: number): Promise<BlockImportance> {
  const read: [ProjectionName, MatrixImportance][] = [];
  for (const projection of PROJECTION_NAMES) {
    const [rows, columns] = LINES.map((line) => sums.get(sumName(layer, projection, line)));
    read.push([projection, { rows: await rows.read(), columns: await columns.read() }]);
  }
  return Object.fromEntries(read) as BlockImportance;
}

/** Adds Σ |w| of one block, a matrix at a time. */
function addAbsoluteSums(sums: ParamStore, decoder: Decoder, layer: number): void {
  const { device } = decoder;
  for (const projection of PROJECTION_NAMES) {
    device.scope(() => {
      const w = decoder.denseWeight(layerName(layer, weightOf(projection)));
      addSums(sums, layer, projection, device.ops.abs(w));
    });
  }
}

/** An f32 copy of the whole decoder, for gradients of its weights. */
function denseCopy(decoder: Decoder): Decoder {
  const weights = ParamStore.filled(decoder.device, "weights", (store) => {
    for (const { name } of decoderParameters(decoder.config)) store.add(name, decoder.denseWeight(name));
  });
  return new Decoder(decoder.config, weights);
}

/** Adds Σ g² of blocks, g the gradient of each calibration batch's mean loss. Throws `L-CALIBRATION` without a batch. */
async function addFisherSums(
  sums: ParamStore,
  decoder: Decoder,
  layers: ReadonlySet<number>,
  batches: readonly LabeledBatch[],
): Promise<void> {
  if (batches.length === 0) {
    throw new SidenetError(
      "L-CALIBRATION",
      "Fisher importance is measured on data, and there is no calibration batch. Give one, or take importance l1.",
    );
  }
  const { device } = decoder;
  using dense = denseCopy(decoder);
  using full = new FullTuning(dense);
  const leaves = [...layers].flatMap((layer) =>
    PROJECTION_NAMES.map((projection) => ({
      layer,
      projection,
      leaf: dense.weights.get(layerName(layer, weightOf(projection))),
    })),
  );
  for (const batch of batches) {
    device.scope(() => {
      const gradients = gradientsOf(
        dense,
        full,
        batch,
        leaves.map(({ leaf }) => leaf),
      );
      for (const { layer, projection, leaf } of leaves) {
        device.scope(() => {
          const gradient = gradients.get(leaf)!;
          const square = device.ops.mul(gradient, gradient);
          gradient.dispose("its square");
          addSums(sums, layer, projection, square);
        });
      }
    });
    await device.synchronize(); // or the freed memory of all batches would wait in the queue
  }
}

/** Gradients of a batch's mean loss with respect to some of the weights. */
function gradientsOf(
  decoder: Decoder,
  full: FullTuning,
  batch: LabeledBatch,
  leaves: readonly Tensor[],
): Gradients {
  using tape = new Tape(decoder.device, leaves);
  const loss = decoder.device.scope(() => {
    const y = residualStream(decoder, full, decoder.prepare(batch), { ops: tape });
    return batchLoss(decoder, tape, y, batch);
  });
  return tape.backward(loss);
}

/** Importance of every row and column of these blocks, by layer. Throws `L-CALIBRATION` for Fisher importance without data. */
export async function measureImportance(
  decoder: Decoder,
  layers: ReadonlySet<number>,
  { importance = "l1", calibration = [] }: PruneOptions,
): Promise<Map<number, BlockImportance>> {
  using sums = new ParamStore(decoder.device, "workspace");
  if (importance === "fisher") await addFisherSums(sums, decoder, layers, calibration);
  const blocks = new Map<number, BlockImportance>();
  for (const layer of layers) {
    if (importance === "l1") addAbsoluteSums(sums, decoder, layer);
    blocks.set(layer, await readImportance(sums, layer));
  }
  return blocks;
}

/**
 * Initial values of the side network's blocks and rungs, by name. Blocks are rows and columns of the backbone's blocks; each
 * row of a rung selects one of the chosen channels (a single 1). Where the side network is larger than the block it starts
 * from, the rest keeps its random values. The side network's norm and output matrix U are not included.
 *
 * Throws `L-CALIBRATION` for Fisher importance without data.
 */
export async function prunedValues(
  decoder: Decoder,
  config: SideConfig,
  options: PruneOptions = {},
): Promise<ReadonlyMap<string, Float32Array>> {
  const { config: model } = decoder;
  const sources = sourceBlocks(config, model);
  const blocks = await measureImportance(decoder, new Set(sources), options);
  const channels = chooseChannels([...blocks.values()], config.hidden_size);
  const side = sideBlockShape(config, model);
  const random = new Map(
    sideParameters(config, model).map((spec, i) => [spec.name, randomValues(spec, i, config, model)]),
  );
  const values = new Map<string, Float32Array>();
  for (const [i, layer] of sources.entries()) {
    const choice = chooseBlock(model, side, blocks.get(layer)!);
    for (const { name, shape } of blockParameters(model)) {
      using dense = decoder.device.scope(() => decoder.denseWeight(layerName(layer, name)));
      const target = sideLayerName(i + 1, name);
      const axes = axesOf(name, channels, choice);
      values.set(target, pick(await dense.read(), shape[shape.length - 1], axes, random.get(target)!));
    }
  }
  for (const name of random.keys()) {
    if (RUNG.test(name)) values.set(name, selectionMatrix(channels, model.hiddenSize));
  }
  return values;
}

const RUNG = /^ladder\.rungs\.\d+\.down\.weight$/;

/** D_k [d_s, d] with a 1 at the chosen channel of each row. */
function selectionMatrix(channels: Choice, hiddenSize: number): Float32Array {
  const rung = new Float32Array(channels.length * hiddenSize);
  for (const [row, channel] of channels.entries()) if (channel !== NONE) rung[row * hiddenSize + channel] = 1;
  return rung;
}
