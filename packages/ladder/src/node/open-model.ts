/** From what `--model` says to a model's configuration, weights and tokenizer. */
import { existsSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { type ModelConfig, parseModelConfig } from "../config.ts";
import type { Checkpoint } from "../formats/checkpoint.ts";
import { readGguf } from "../formats/gguf.ts";
import { checkpointFromGguf } from "../formats/gguf-checkpoint.ts";
import { modelConfigFromGguf } from "../formats/gguf-config.ts";
import { tokenizerFromGguf } from "../formats/gguf-tokenizer.ts";
import { openSafetensorsShards } from "../formats/safetensors-shards.ts";
