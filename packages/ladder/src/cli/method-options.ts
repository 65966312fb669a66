/** Options that say what a step trains and what memory it may take; `train`, `plan` and `compare` share them. */
import { type Device, SidenetError } from "@sidenet/tensor";
import { Command, Option } from "commander";
import { METHODS, type Method } from "../methods/adapter.ts";
import type { LadderOptions, SideOptions, XLadderOptions } from "../methods/ladder-config.ts";
import type { LoraOptions } from "../methods/lora-config.ts";
import { hasSideNetwork, type MethodOptions } from "../methods/method.ts";
import { IMPORTANCES, type Importance } from "../methods/pruning.ts";
import type { BaseStorage, WeightDType } from "../model/base-storage.ts";
import { defaultMemory, defaultStorage } from "../training/method-defaults.ts";
import type { MemoryOptions } from "../training/trainer.ts";
import {
  fraction,
  givenOptions,
  indexOrRange,
  listOf,
  numberWithin,
  positiveInteger,
  positiveNumber,
  seed,
} from "./options.ts";

/** As commander hands them over; what was not given is missing. */
export interface SizeFlags {
  readonly reduction?: number;
  readonly sideWidth?: number;
  readonly layers?: number;
  readonly delta?: number;
  readonly fusion?: "add" | "gate";
  readonly initialRung: boolean;
  readonly rungNorm: boolean;
  readonly rungsAt?: readonly number[];
  readonly init: "random" | "pruned";
  readonly importance?: Importance;
  readonly rank?: number;
  readonly alpha?: number;
  readonly dropout?: number;
  readonly rslora: boolean;
  readonly targets?: readonly string[];
  readonly loraLayers?: readonly number[];
  readonly seed: number;
}

export interface MemoryFlags {
  readonly quantize: "auto" | "nf4" | "none";
  readonly quantizeEnds: boolean;
  readonly gradientCheckpointing?: boolean;
  readonly optimizerState: "auto" | "f32" | "8bit";
  readonly saved: "auto" | "f32" | "f16";
  readonly rungs: "auto" | "f32" | "f16" | "int8";
  readonly lossChunk?: number;
  readonly microBatch?: number;
  readonly chunkTokens?: number;
}

/** The flags of a step of one method. */
export interface StepFlags extends SizeFlags, MemoryFlags {
  readonly method: Method;
  readonly dtype: WeightDType | "auto";
  readonly batchSize: number;
  readonly gradientAccumulation: number;
}

const dtypeOption = (): Option =>
  new Option("--dtype <type>", "type of the frozen weights; auto: f16 where the device has it")
    .choices(["auto", "f32", "f16"])
    .default("auto");

export const methodOption = (): Option =>
  new Option("--method <name>", "training method").choices(METHODS).default("ladder");

/** Sizes of side networks and of LoRA. */
export function addSizeOptions(command: Command): Command {
  return command
    .option(
      "--reduction <r>",
      "side network: width = the model's hidden size / r (default: 8)",
      positiveNumber,
    )
    .option("--side-width <n>", "side network: width, in place of --reduction", positiveInteger)
    .option(
      "--layers <l>",
      "side network: layers (default: ladder half of the model's, xladder 2 δ)",
      positiveInteger,
    )
    .option(
      "--rungs-at <t...>",
      "ladder: indices of the hidden states to read, 0 to L, one per side layer (default: evenly spaced up to L)",
      listOf(indexOrRange),
    )
    .option("--delta <n>", "xladder: number δ of top layers to read (default: a quarter)", positiveInteger)
    .addOption(
      new Option("--fusion <kind>", "side network: how a rung is combined with its state")
        .choices(["add", "gate"])
        .default("add"),
    )
    .option("--initial-rung", "side network: start from the embeddings, H_0", false)
    .option("--no-rung-norm", "side network: do not normalize the hidden states it reads")
    .addOption(
      new Option("--init <kind>", "side network: initialization of its blocks")
        .choices(["random", "pruned"])
        .default("random"),
    )
    .addOption(
      new Option(
        "--importance <kind>",
        "--init pruned: which rows and columns of the model's blocks are kept (default: l1)",
      ).choices(IMPORTANCES),
    )
    .option("--rank <r>", "LoRA: rank (default: 16)", positiveInteger)
    .option("--alpha <x>", "LoRA: alpha, the scale times the rank (default: 2 r)", positiveNumber)
    .option("--dropout <x>", "LoRA: dropout of its input (default: 0)", fraction)
    .option("--rslora", "LoRA: scale by alpha / √r", false)
    .option(
      "--lora-layers <i...>",
      "LoRA: indices of the blocks, from 0, or ranges such as 21-27 (default: all)",
      listOf(indexOrRange),
    )
    .option("--targets <name...>", "LoRA: linear layers (default: all seven, q_proj ... down_proj)")
    .option("--seed <n>", "seed of initial values, dropout and data order", seed, 0);
}

/** The options of side networks that flags stand for. */
const SIDE_OPTIONS = {
  reduction: "reduction",
  sideWidth: "width",
  layers: "layers",
  fusion: "fusion",
  initialRung: "initialRung",
  rungNorm: "rungNorm",
  init: "init",
  importance: "importance",
} as const satisfies Partial<Record<keyof SizeFlags, keyof SideOptions | "layers">>;

/**
 * The options in `MethodOptions` that flags stand for. By this one table flags become options, are refused for methods that have no
 * such option, and are named in errors.
 */
const OPTIONS = {
  ladder: { ...SIDE_OPTIONS, rungsAt: "rungs" },
  xladder: { ...SIDE_OPTIONS, delta: "delta" },
  lora: {
    rank: "rank",
    alpha: "alpha",
    dropout: "dropout",
    rslora: "rsLora",
    targets: "targets",
    loraLayers: "layers",
  },
} as const satisfies {
  ladder: Partial<Record<keyof SizeFlags, keyof LadderOptions>>;
  xladder: Partial<Record<keyof SizeFlags, keyof XLadderOptions>>;
  lora: Partial<Record<keyof SizeFlags, keyof LoraOptions>>;
};

/** The methods that a memory option does something for, where not all are. */
const MEMORY_METHODS: { readonly [flag in keyof MemoryFlags]?: readonly Method[] } = {
  rungs: METHODS.filter(hasSideNetwork),
  gradientCheckpointing: METHODS.filter((method) => method !== "head"), // whose backward pass has no block in it
  chunkTokens: ["ladder", "xladder", "head"], // the others train in the blocks, which a tape records as a whole
};

/** The methods that have an option for a flag. */
const methodsWith = (flag: string): readonly Method[] =>
  MEMORY_METHODS[flag as keyof MemoryFlags] ??
  METHODS.filter((method) => {
    const group = method === "qlora" ? "lora" : method;
    return group in OPTIONS && flag in OPTIONS[group as keyof typeof OPTIONS];
  });

/** Whether a flag does anything for a method. */
export function takesFlag(method: Method, flag: string): boolean {
  const taking = methodsWith(flag);
  return taking.length === 0 || taking.includes(method);
}

/** The flag for an option that an error names, such as "lora.layers"; any other name as it is. */
export function flagOf(name: string): string {
  const [group, option] = name.split(".");
  const [attribute] =
    Object.entries(OPTIONS[group as keyof typeof OPTIONS] ?? {}).find(([, one]) => one === option) ?? [];
  const flag = addSizeOptions(new Command()).options.find((one) => one.attributeName() === attribute);
  return flag?.long ?? name;
}

/** "a, b or c". */
const EITHER = new Intl.ListFormat("en-GB", { type: "disjunction" });

/** Throws `C-USAGE` for an option that none of the methods has: it would do nothing. */
export function refuseOtherMethods(command: Command, methods: readonly Method[]): void {
  for (const option of givenOptions(command)) {
    const flag = option.attributeName();
    if (methods.some((method) => takesFlag(method, flag))) continue;
    throw new SidenetError(
      "C-USAGE",
      `${option.long} is for ${EITHER.format(methodsWith(flag))}, and does nothing for ${methods.join(", ")}. Leave it out, or give another method.`,
    );
  }
}

/** What trades memory for time or precision. */
function addMemoryOptions(command: Command): Command {
  const choice = (flags: string, text: string, names: readonly string[]) =>
    new Option(flags, text).choices(names);
  return command
    .addOption(
      choice(
        "--quantize <kind>",
        "quantization of the blocks' linear weights; auto: nf4 for ladder, xladder, qlora",
        ["auto", "nf4", "none"],
      ).default("auto"),
    )
    .option("--quantize-ends", "store embeddings and lm_head in NF4 as well", false)
    .option(
      "--gradient-checkpointing",
      "recompute recorded blocks in the backward pass (default: only those of side networks, where it costs little)",
    )
    .option("--no-gradient-checkpointing", "keep all activations instead")
    .addOption(
      choice("--optimizer-state <kind>", "AdamW's moments; auto: 8bit where the weights are NF4", [
        "auto",
        "f32",
        "8bit",
      ]).default("auto"),
    )
    .addOption(
      choice("--saved <type>", "type of the activations saved for the backward pass; auto: as --dtype", [
        "auto",
        "f32",
        "f16",
      ]).default("auto"),
    )
    .addOption(
      choice("--rungs <type>", "type of the hidden states saved by rungs; auto: as --dtype", [
        "auto",
        "f32",
        "f16",
        "int8",
      ]).default("auto"),
    )
    .option(
      "--loss-chunk <MiB>",
      "memory for logits, in MiB (default: 32; on a GPU the logits of 128 tokens, at most 80)",
      numberWithin(1, 4096),
    )
    .option("--micro-batch <n>", "rows per forward and backward pass (default: all)", positiveInteger)
    .option(
      "--chunk-tokens <n>",
      "tokens of a row per pass through a frozen block (default: the hidden size, within 512 and 2048)",
      positiveInteger,
    );
}

/** What decides a step, planned or run; `batchSize` is the default. */
export function addStepOptions(command: Command, batchSize: number): Command {
  command
    .option("--batch, --batch-size <n>", "records per batch", positiveInteger, batchSize)
    .option("--gradient-accumulation <n>", "batches per optimizer step", positiveInteger, 1)
    .addOption(dtypeOption());
  return addMemoryOptions(addSizeOptions(command));
}

/** What a step depends on: the method, how its model is stored on this device, and memory options. */
export function stepSettings(
  flags: StepFlags,
  device: Pick<Device, "kind" | "profile">,
): { method: MethodOptions; storage: Required<BaseStorage>; memory: MemoryOptions } {
  const { method } = flags;
  const storage = storageOf(flags, device);
  return { method: methodOptions(method, flags), storage, memory: memoryOptions(flags, method, storage) };
}

export function methodOptions(method: Method, flags: SizeFlags): MethodOptions {
  if (flags.importance !== undefined && flags.init !== "pruned")
    throw new SidenetError("C-USAGE", "--importance says what --init pruned keeps. Give both.");
  if (flags.reduction !== undefined && flags.sideWidth !== undefined)
    throw new SidenetError("C-USAGE", "--side-width stands in place of --reduction. Give one of them.");
  const optionsOf = (group: keyof typeof OPTIONS) =>
    defined(
      Object.fromEntries(
        Object.entries(OPTIONS[group]).map(([flag, option]) => [option, flags[flag as keyof SizeFlags]]),
      ),
    );
  return {
    method,
    ladder: optionsOf("ladder"),
    xladder: optionsOf("xladder"),
    lora: optionsOf("lora"),
    seed: flags.seed,
  };
}

/** What `auto` comes to: `storage` is how the method's model is stored. */
function memoryOptions(
  flags: MemoryFlags & Pick<SizeFlags, "rungNorm">,
  method: Method,
  storage: Required<BaseStorage>,
): MemoryOptions {
  const { gradientCheckpointing, optimizerState, saved, rungs, lossChunk, microBatch, chunkTokens } = flags;
  const auto = defaultMemory(method, storage, flags.rungNorm);
  return {
    gradientCheckpointing: gradientCheckpointing ?? auto.gradientCheckpointing,
    optimizerState: optimizerState === "auto" ? auto.optimizerState : optimizerState,
    savedFormats: {
      saved: saved === "auto" ? auto.savedFormats.saved! : saved,
      rungs: rungs === "auto" ? auto.savedFormats.rungs! : rungs,
    },
    ...defined({ microBatchSize: microBatch, chunkTokens }),
    ...(lossChunk === undefined ? {} : { lossChunkBytes: lossChunk * 2 ** 20 }),
  };
}

/** How the model of this method is stored. */
function storageOf(
  { method, dtype, quantize, quantizeEnds }: StepFlags,
  device: Pick<Device, "kind" | "profile">,
): Required<BaseStorage> {
  const auto = defaultStorage(method, device);
  return {
    dtype: dtype === "auto" ? auto.dtype : dtype,
    quantizeBlocks: quantize === "auto" ? auto.quantizeBlocks : quantize === "nf4",
    quantizeEmbeddings: quantizeEnds,
  };
}

/** The fields that have a value: options that were not given keep their defaults. */
function defined<T extends object>(fields: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as never;
}
