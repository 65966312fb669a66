/** A model from files, ready to be asked: decoder, adapter and tokenizer. */
import { type Device, type ParamStore, SidenetError } from "@sidenet/tensor";
import type { Adapter } from "../methods/adapter.ts";
import { quantizesByDefault } from "../methods/method.ts";
import { changesBackbone, refusePrefix } from "../methods/residual-stream.ts";
import type { WeightDType } from "../model/base-storage.ts";
import type { ModelConfig } from "../model/config.ts";
import { Decoder } from "../model/decoder.ts";
import { loadWeights } from "../model/load-weights.ts";
import { afterPrefix, encodePrefix } from "../text/prefix-text.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import { openAdapter, readBackboneSetup } from "./adapter-files.ts";
import { readText } from "./file-source.ts";
import type { HubOptions } from "./hub.ts";
import { openModel } from "./open-model.ts";

/** Which model is loaded, with which adapter, and how it is stored. */
export interface InferenceOptions {
  readonly model: string;
  readonly adapter: string | null;
  readonly dtype: WeightDType;
  /** Linear weights of the blocks; auto: as the adapter was trained, else as they are. */
  readonly quantize: "auto" | "nf4" | "none";
  /** File of a chat template, in place of the model's; null: that. */
  readonly chatTemplate: string | null;
  /** File of a text that stands before every prompt; absent or null: the prefix that the adapter was trained after, if any. */
  readonly prefix?: string | null;
  /** How models are fetched by their ids. */
  readonly hub?: HubOptions;
}

/** A model that is loaded to be asked, with its adapter and tokenizer; disposing frees model and adapter. */
export interface Inference {
  readonly decoder: Decoder;
  readonly adapter: Adapter | null;
  /** For texts after the decoder's prefix, if it has one. */
  readonly tokenizer: Tokenizer;
  readonly isQuantized: boolean;
  /** For `using`. */
  [Symbol.dispose](): void;
}

/** The tokenizer with the chat template of a file, if given. Throws `L-FILE-MISSING`, `L-FILE` or `L-CHAT-TEMPLATE`. */
export async function withTemplateOf(tokenizer: Tokenizer, path: string | null): Promise<Tokenizer> {
  return path === null ? tokenizer : tokenizer.withChatTemplate(await readText(path), path);
}

/** The token ids of the prefix in a file. Throws `L-FILE-MISSING`, `L-FILE`, and `L-PROMPT` for an empty file. */
export async function prefixIdsOf(path: string, tokenizer: Tokenizer): Promise<number[]> {
  const ids = encodePrefix(tokenizer, await readText(path));
  if (ids.length > 0) return ids;
  throw new SidenetError(
    "L-PROMPT",
    `${path} is empty, and a prefix needs a text. Leave out --prefix for none.`,
  );
}

/** A decoder that has read a prefix; it owns the weights. Throws what `Decoder` and `Decoder.readPrefix` throw. */
export function prefixedDecoder(
  config: ModelConfig,
  weights: ParamStore,
  prefixIds: readonly number[],
): Decoder {
  const decoder = new Decoder(config, weights);
  try {
    decoder.readPrefix(prefixIds);
    return decoder;
  } catch (error) {
    decoder.dispose();
    throw error;
  }
}

/**
 * Loads a model as its adapter was trained, in NF4 where that was and after the same prefix, unless the options say otherwise. Throws
 * what opening a model, an adapter and a file throws, and `L-METHOD` for a prefix before an adapter that changes the blocks.
 */
export async function openInference(
  device: Device,
  options: InferenceOptions,
  onProgress?: (done: number, total: number) => void,
): Promise<Inference> {
  const model = await openModel(options.model, options.hub);
  let adapter: Adapter | null = null;
  try {
    const tokenizer = await withTemplateOf(await model.tokenizer(), options.chatTemplate);
    adapter = options.adapter === null ? null : await openAdapter(options.adapter, device, model.config);
    const setup = options.adapter === null ? {} : await readBackboneSetup(options.adapter);
    const prefixIds =
      options.prefix == null ? (setup.prefixIds ?? []) : await prefixIdsOf(options.prefix, tokenizer);
    if (adapter && changesBackbone(adapter) && prefixIds.length > 0) throw refusePrefix();
    const byAdapter = setup.quantized ?? (adapter !== null && quantizesByDefault(adapter.method));
    const quantizeBlocks = options.quantize === "auto" ? byAdapter : options.quantize === "nf4";
    const weights = await loadWeights(device, model.config, model.checkpoint, {
      dtype: options.dtype,
      quantizeBlocks,
      ...(onProgress ? { onProgress } : {}),
    });
    const decoder = prefixedDecoder(model.config, weights, prefixIds);
    const opened = adapter;
    return {
      decoder,
      adapter: opened,
      tokenizer: afterPrefix(tokenizer, prefixIds),
      isQuantized: decoder.isQuantized,
      [Symbol.dispose]() {
        opened?.dispose();
        decoder.dispose();
      },
    };
  } catch (error) {
    adapter?.dispose();
    throw error;
  } finally {
    await model.close();
  }
}
