/** The names of a model's files in a folder of the Hugging Face layout. */
export const CONFIG = "config.json";
export const WEIGHTS = "model.safetensors";
/** Which shard holds which tensor, where there is no single file of weights. */
export const INDEX = "model.safetensors.index.json";
export const TOKENIZER = "tokenizer.json";
export const TOKENIZER_CONFIG = "tokenizer_config.json";
/** Names the ids at which the model stops, before the config does. */
export const GENERATION_CONFIG = "generation_config.json";
/** In newer models beside `TOKENIZER_CONFIG`, and before what that says. */
export const CHAT_TEMPLATE = "chat_template.jinja";

/** Whether a path is that of a GGUF file, which is a model by itself. */
export const isGgufPath = (path: string): boolean => /\.gguf$/i.test(path);
