/** Names of llama.cpp's tensors to those of Hugging Face checkpoints. */

const WHOLE: Readonly<Record<string, string>> = {
  token_embd: "model.embed_tokens",
  output_norm: "model.norm",
  output: "lm_head",
};

const BLOCK: Readonly<Record<string, string>> = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
};

/** Llama 3's frequency factors: part of the config there (see gguf-config.ts), not a weight. */
export const ROPE_FACTORS = "rope_freqs.weight";

/** "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; null for a name that a Llama-family block lacks. */
export function huggingFaceName(ggufName: string): string | null {
  const match = /^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$/.exec(ggufName);
  if (!match) return null;
  const [, layer, part, kind] = match;
  const table = layer === undefined ? WHOLE : BLOCK;
  if (!Object.hasOwn(table, part)) return null;
  return layer === undefined ? `${table[part]}.${kind}` : `model.layers.${layer}.${table[part]}.${kind}`;
}

const invert = (table: Readonly<Record<string, string>>): ReadonlyMap<string, string> =>
  new Map(Object.entries(table).map(([gguf, name]) => [name, gguf]));
const WHOLE_INVERSE = invert(WHOLE);
const BLOCK_INVERSE = invert(BLOCK);

/** The inverse of `huggingFaceName`; null for a name that no tensor of the family has. */
export function ggufName(name: string): string | null {
  const match = /^(?:model\.layers\.(\d+)\.)?([\w.]+)\.(weight|bias)$/.exec(name);
  if (!match) return null;
  const [, layer, part, kind] = match;
  const found = (layer === undefined ? WHOLE_INVERSE : BLOCK_INVERSE).get(part);
  if (found === undefined) return null;
  return layer === undefined ? `${found}.${kind}` : `blk.${layer}.${found}.${kind}`;
}
