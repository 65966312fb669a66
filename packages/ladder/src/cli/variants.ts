/** Methods as `plan` and `compare` name them: "qlora", or with a memory lever switched on, "qlora+checkpointing". */
import { type Device, SidenetError } from "@sidenet/tensor";
import { type Command, InvalidArgumentError } from "commander";
import { METHODS, type Method } from "../methods/adapter.ts";
import type { ModelConfig } from "../model/config.ts";
import { checkMethod } from "../training/plan.ts";
import {
  type MemoryFlags,
  refuseOtherMethods,
  type StepFlags,
  stepSettings,
  takesFlag,
} from "./method-options.ts";
import type { Report } from "./terminal.ts";

/** What may follow a method after "+": options of the same meaning, for this method alone. */
const LEVERS: Readonly<Record<string, Partial<MemoryFlags>>> = {
  checkpointing: { gradientCheckpointing: true },
  "no-checkpointing": { gradientCheckpointing: false },
  "8bit": { optimizerState: "8bit" },
  "nf4-ends": { quantizeEnds: true },
  "int8-rungs": { rungs: "int8" },
  f32: { saved: "f32", rungs: "f32", optimizerState: "f32" },
};

/** A method with the levers that are its own. */
export interface Variant {
  /** As it was given, and stands in tables. */
  readonly name: string;
  readonly method: Method;
  readonly flags: Partial<MemoryFlags>;
}

/** Parses "qlora+checkpointing". Throws commander's error for an unknown method or lever. */
export function parseVariant(text: string): Variant {
  const [method, ...levers] = text.split("+");
  const known = METHODS.find((name) => name === method);
  if (known === undefined) {
    throw new InvalidArgumentError(`"${method}" is not a method. Methods are ${METHODS.join(", ")}.`);
  }
  const flags = levers.map((lever) => {
    if (!Object.hasOwn(LEVERS, lever)) {
      throw new InvalidArgumentError(
        `"${lever}" is not a method suffix. Suffixes are ${Object.keys(LEVERS).join(", ")}.`,
      );
    }
    if (Object.keys(LEVERS[lever]).some((flag) => takesFlag(known, flag))) return LEVERS[lever];
    throw new InvalidArgumentError(`The suffix "${lever}" does nothing for ${known}.`);
  });
  return { name: text, method: known, flags: Object.assign({}, ...flags) as Partial<MemoryFlags> };
}

/** The flags that a variant stands for, beside those of all. */
export const variantFlags = <Flags extends object>(variant: Variant, flags: Flags) => ({
  ...flags,
  ...variant.flags,
  method: variant.method,
});

/** The methods of a table. */
export interface MethodChoice {
  readonly variants: readonly Variant[];
  /** Whether the user named them. */
  readonly named: boolean;
}

/** Throws `C-USAGE` for an option that none of the methods has, and for a method that is named twice. */
export function chooseMethods(
  command: Command,
  named: readonly Variant[] | undefined,
  defaults: readonly string[],
): MethodChoice {
  const variants = named ?? defaults.map(parseVariant);
  const names = variants.map(({ name }) => name);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined)
    throw new SidenetError("C-USAGE", `the method ${twice} is named twice. Name each once.`);
  refuseOtherMethods(
    command,
    variants.map(({ method }) => method),
  );
  return { variants, named: named !== undefined };
}

/** The file of a prefix, of runs, or its length, of plans. */
interface PrefixFlags {
  readonly prefix?: string;
  readonly prefixTokens?: number;
}

/** Codes of a method that the other options exclude, such as QLoRA without NF4. */
const EXCLUDED = ["L-METHOD", "L-HEAD"];

/**
 * The methods that the options and the model allow. Throws as `makeAdapter` for options that do not fit the model; methods that
 * nobody named, and that other options exclude, are left out with a note.
 */
export function usableVariants(
  report: Report,
  { variants, named }: MethodChoice,
  config: ModelConfig,
  flags: Omit<StepFlags, "method"> & PrefixFlags,
  device: Pick<Device, "kind" | "profile">,
): Variant[] {
  const hasPrefix = flags.prefix !== undefined || flags.prefixTokens !== undefined;
  const excluded = new Map<string, string[]>();
  const usable = variants.filter((variant) => {
    try {
      checkMethod(config, { ...stepSettings(variantFlags(variant, flags), device), hasPrefix });
      return true;
    } catch (error) {
      if (named || !(error instanceof SidenetError) || !EXCLUDED.includes(error.code)) throw error;
      excluded.set(error.text, [...(excluded.get(error.text) ?? []), variant.name]);
      return false;
    }
  });
  for (const [why, names] of excluded) report.note(`without ${names.join(", ")}: ${why}`);
  return usable;
}
