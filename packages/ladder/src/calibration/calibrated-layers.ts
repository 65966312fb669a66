/**
 * NF4 weights by calibration: GPTQ (Frantar et al. 2022, 2210.17323) with the values of NF4. Layers are quantized one after
 * the other, each for the hidden states of a calibration text after the quantized layers before it.
 */
import { type Device, ParamStore, SidenetError, type Tensor } from "@sidenet/tensor";
import type { ModelTensor } from "../methods/model-tensors.ts";
import { isBlockMatrix } from "../model/base-storage.ts";
import {
  type BlockContext,
  type BlockWeights,
  block,
  blockParameters,
  blockWeights,
  PROJECTIONS,
  type ProjectionName,
} from "../model/block.ts";
import type { ModelConfig } from "../model/config.ts";
import { EMBEDDINGS, layerName, type TokenBatch } from "../model/decoder.ts";
import { type DoubleNf4, uploadNf4 } from "../model/nf4-weight.ts";
import { ropeTables } from "../model/rope-tables.ts";
import { calibratedNf4 } from "./calibrated-nf4.ts";
import { type Feedback, feedbackOf } from "./feedback.ts";
import { observing, READERS, sinkWeights } from "./moments.ts";

/** Matrices with more columns are refused: H alone would take over 0.5 GB, and its factor minutes per layer. */
export const MAX_COLUMNS = 8192;

/** Damping: this share of the mean of H's diagonal is added to the diagonal. */
const DAMPING = 0.01;

/** Throws `L-CALIBRATION` without tokens, or for a model whose matrices H would be too large. */
function checkCalibration(tensors: readonly ModelTensor[], tokens: number): void {
  if (tokens === 0) {
    throw new SidenetError("L-CALIBRATION", "the calibration text has no tokens. Give a file with records.");
  }
  const largest = tensors.filter(isBlockMatrix).reduce((a, b) => (b.shape[1] > a.shape[1] ? b : a));
  const columns = largest.shape[1];
  if (columns <= MAX_COLUMNS) return;
  const gigabytes = ((8 * columns ** 2) / 1e9).toFixed(1);
  const minutes = Math.ceil(columns ** 3 / 6 / 5e8 / 60);
  throw new SidenetError(
    "L-CALIBRATION",
    `${largest.name} has ${columns} columns: its ${columns} x ${columns} matrix of second moments would take ${gigabytes} GB, ` +
      `and some ${minutes} minutes a layer to factor; calibration goes up to ${MAX_COLUMNS}. Quantize without --calibrate.`,
  );
}

/** A row of tokens, and the hidden states f32[1,T,d] that go into the next layer. */
interface CalibrationRow {
  readonly batch: TokenBatch;
  state: Tensor;
}

/** Quantizes the layers of a model one after the other, when their weights are requested. */
export class CalibratedLayers {
  readonly #device: Device;
  readonly #config: ModelConfig;
  readonly #tensors: ReadonlyMap<string, ModelTensor>;
  readonly #batches: readonly TokenBatch[];
  #rows: CalibrationRow[] | null = null;
  /** Weights of the last quantized layer. */
  #quantized = new Map<string, DoubleNf4>();
  #layer = -1;

  /** `batches` have one row each. Throws `L-CALIBRATION` without tokens, and for a model whose matrices would be too large. */
  constructor(
    device: Device,
    config: ModelConfig,
    tensors: readonly ModelTensor[],
    batches: readonly TokenBatch[],
  ) {
    checkCalibration(
      tensors,
      batches.reduce((sum, { batchSize, length }) => sum + batchSize * length, 0),
    );
    this.#device = device;
    this.#config = config;
    this.#tensors = new Map(tensors.map((tensor) => [tensor.name, tensor]));
    this.#batches = batches;
  }

  /**
   * A weight of a block in NF4; weights must be requested in the order of the layers. Throws `L-NF4-FINITE` for a weight, and
   * `L-CALIBRATION` for hidden states, that are not finite.
   */
  async weight(name: string): Promise<DoubleNf4> {
    const layer = Number(/^model\.layers\.(\d+)\./.exec(name)?.[1]);
    while (this.#layer < layer) await this.#next();
    const found = this.#quantized.get(name);
    if (found) return found;
    throw new SidenetError(
      "L-CALIBRATION",
      `"${name}" is not a weight of layer ${this.#layer}, the last calibrated one.`,
    );
  }

  async #next(): Promise<void> {
    this.#rows ??= await this.#embedded();
    this.#layer++;
    this.#quantized = new Map(); // the caller has written the layer before
    using store = new ParamStore(this.#device, "weights");
    const linear = await this.#load(store);
    const moments = await this.#observe(blockWeights(this.#config, store));
    using nf4 = new ParamStore(this.#device, "weights");
    for (const places of READERS) {
      const feedback = this.#feedback(places[0], moments.get(places[0])!);
      moments.delete(places[0]);
      for (const place of places) {
        const short = `${PROJECTIONS[place]}.weight`;
        const name = layerName(this.#layer, short);
        const values = calibratedNf4(name, linear.get(short)!, feedback);
        uploadNf4(nf4, short, values);
        this.#quantized.set(name, values);
      }
    }
    for (const [name, tensor] of store) if (!nf4.has(name)) nf4.add(name, this.#device.retain(tensor));
    await this.#advance(blockWeights(this.#config, nf4));
  }

  /** Loads the layer's parameters in f32 into a store, by their names within the layer; returns its linear weights. */
  async #load(store: ParamStore): Promise<Map<string, Float32Array>> {
    const linear = new Map<string, Float32Array>();
    for (const { name: short, shape } of blockParameters(this.#config)) {
      const tensor = this.#tensors.get(layerName(this.#layer, short))!;
      const values = await tensor.read();
      store.add(short, this.#device.tensor(values, shape, { category: "weights", label: tensor.name }));
      if (isBlockMatrix(tensor)) linear.set(short, values);
    }
    return linear;
  }

  /** Runs the unquantized layer over all rows; returns the second moments of its projections' inputs. */
  async #observe(weights: BlockWeights): Promise<Map<ProjectionName, Float32Array>> {
    const device = this.#device;
    using totals = new ParamStore(device, "workspace");
    for (const [place] of READERS) {
      const { hiddenSize, intermediateSize, numAttentionHeads, headDim } = this.#config;
      const columns =
        { o: numAttentionHeads * headDim, down: intermediateSize }[place as string] ?? hiddenSize;
      totals.add(place, device.zeros([columns, columns], { label: `moments of ${place}` }));
    }
    const moments = new Map(READERS.map(([place]) => [place, totals.get(place)]));
    for (const { batch, state } of this.#rows!) {
      device.scope(() => {
        const sinks = device.tensor(sinkWeights(batch), [batch.length, 1], { label: "weights of tokens" });
        block(device.ops, this.#config, observing(weights, moments, sinks), state, this.#context(batch));
      });
      await device.synchronize(); // bounds the memory that waits in the queue to be freed
    }
    const read = new Map<ProjectionName, Float32Array>();
    for (const [place] of READERS) read.set(place, (await totals.get(place).read()) as Float32Array);
    return read;
  }

  /** Runs the quantized layer over all rows, which gives the inputs of the next layer. */
  async #advance(weights: BlockWeights): Promise<void> {
    const device = this.#device;
    for (const row of this.#rows!) {
      const next = device.keep(
        device.scope(() => block(device.ops, this.#config, weights, row.state, this.#context(row.batch))),
      );
      row.state.dispose();
      row.state = next;
      await device.synchronize();
    }
  }

  #feedback(place: ProjectionName, moments: Float32Array): Feedback {
    const columns = Math.sqrt(moments.length);
    const feedback = feedbackOf(moments, columns, DAMPING);
    if (feedback) return feedback;
    throw new SidenetError(
      "L-CALIBRATION",
      `layer ${this.#layer}: the inputs of ${PROJECTIONS[place]} on the calibration text are not finite. Are the model's ` +
        "weights damaged?",
    );
  }

  #context({ length, segments }: TokenBatch): BlockContext {
    const device = this.#device;
    const { rope, headDim } = this.#config;
    return {
      rope: ropeTables(device, rope, headDim, 0, length),
      keyMask: null,
      segments: segments ? device.tensor(segments, [1, length], { dtype: "i32", label: "segments" }) : null,
      offset: 0,
    };
  }

  /** The embeddings of all rows, from one read of the table. */
  async #embedded(): Promise<CalibrationRow[]> {
    const { hiddenSize: d } = this.#config;
    const table = await this.#tensors.get(EMBEDDINGS)!.read();
    return this.#batches.map((batch) => {
      const values = new Float32Array(batch.length * d);
      for (let t = 0; t < batch.length; t++) {
        const id = batch.inputIds[t];
        values.set(table.subarray(id * d, (id + 1) * d), t * d);
      }
      const state = this.#device.tensor(values, [1, batch.length, d], { label: "hidden states" });
      return { batch, state: this.#device.keep(state) };
    });
  }

  /** Frees the hidden states. */
  dispose(): void {
    for (const { state } of this.#rows ?? []) state.dispose();
    this.#rows = null;
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
