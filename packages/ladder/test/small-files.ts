// Contents of a model's files, as small as the readers accept.
import { concatBytes, encodeSafetensors } from "../src/formats/safetensors-write.ts";

export const CONFIG = JSON.stringify({
  architectures: ["LlamaForCausalLM"],
  vocab_size: 4,
  hidden_size: 2,
  intermediate_size: 4,
  num_hidden_layers: 1,
  num_attention_heads: 1,
});
export const TOKENIZER = JSON.stringify({ model: { type: "BPE", vocab: { a: 0, b: 1 }, merges: [] } });

/** Safetensors with a vector of `size` elements under each name; those of the i-th are i. */
export const weightsFile = (size: number, names: readonly string[]): Uint8Array =>
  concatBytes(
    encodeSafetensors(
      Object.fromEntries(
        names.map((name, i) => [name, { dtype: "F32", shape: [size], data: new Float32Array(size).fill(i) }]),
      ),
    ),
  );
