/**
 * Settings of a command from a file, by the names of its flags. The flags are the one list there is: their names, choices,
 * parsers, defaults and texts make the schema of the file, `--set`, and the file that `init` writes.
 */
import { SidenetError } from "@sidenet/tensor";
import { type Command, CommanderError, type Option } from "commander";
import { closest, distance } from "fastest-levenshtein";
import { isMap, isScalar, LineCounter, parseDocument } from "yaml";
import * as z from "zod";
import { isRepeatable } from "./options.ts";

/** Values by name, as `run.json` and a config file hold them. */
export type Settings = Readonly<Record<string, z.core.util.JSONType>>;

/** Flags that are about one invocation and no part of a run's settings. */
const NOT_SETTINGS = new Set([
  "config",
  "set",
  "json",
  "quiet",
  "help",
  "resume",
  "overwrite",
  "memory-timeline",
]);

/** The name in a file: `--no-rung-norm` is `rung-norm: false` there. */
export const settingName = (option: Option): string =>
  (option.long ?? option.flags).replace(/^--/, "").replace(/^no-/, "");

/** Flags of one invocation are no settings. */
export const settingsOf = (command: Command): Option[] =>
  command.options.filter((option) => !NOT_SETTINGS.has(settingName(option)));

const shown = (value: unknown): string => JSON.stringify(value) ?? String(value);

/** Text as a flag's parser takes it; its complaint becomes the schema's. */
function parsed(
  option: Option,
  value: string | number,
  previous: unknown,
  context: z.RefinementCtx,
): unknown {
  try {
    const parse = option.parseArg as ((text: string, previous: unknown) => unknown) | undefined;
    return parse ? parse(String(value), previous) : String(value);
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    context.addIssue({
      code: "custom",
      message: `${error.message.replace(/\.$/, "")}, found ${shown(value)}`,
    });
    return z.NEVER;
  }
}

function schemaOf(option: Option): z.ZodType {
  if (option.isBoolean() || option.negate) return z.boolean();
  const scalar = option.argChoices
    ? z.enum(option.argChoices)
    : z.union([z.string(), z.number()], { error: "Wanted one value, text or a number" });
  if (!isRepeatable(option)) {
    return scalar.transform((value, context) =>
      option.argChoices ? value : parsed(option, value, undefined, context),
    );
  }
  return z
    .union([scalar.transform((value) => [value]), z.array(scalar).min(1)])
    .transform((values, context) => {
      if (!option.parseArg || option.argChoices) return values.map(String);
      // As commander does it: the default is the first previous value.
      const first: unknown = option.defaultValue;
      return values.reduce<unknown>((all, value) => parsed(option, value, all, context), first);
    });
}

/** What a file may say about a command: every setting by name, none required. */
function settingsSchema(command: Command): z.ZodType<Record<string, unknown>> {
  const entries = settingsOf(command).map((option) => [settingName(option), schemaOf(option).optional()]);
  return z.strictObject(Object.fromEntries(entries));
}

/** The known name that is likely meant: another spelling such as batch_size or batchSize, or a typo. */
function suggestName(name: string, names: readonly string[]): string | null {
  const plain = (text: string) => text.toLowerCase().replace(/[^a-z0-9]/g, "");
  const letters = plain(name);
  const likeliest = closest(letters, names.map(plain));
  const isClose = distance(letters, likeliest) <= letters.length / 3;
  return isClose ? names.find((known) => plain(known) === likeliest)! : null;
}

function describeIssue(
  issue: z.core.$ZodIssue,
  names: readonly string[],
  lines: ReadonlyMap<string, number>,
): string {
  const place = (name: string) => (lines.has(name) ? `line ${lines.get(name)}: ` : "");
  if (issue.code === "unrecognized_keys") {
    return issue.keys
      .map((key) => {
        const suggestion = suggestName(key, names);
        const cure = suggestion ? `Did you mean ${suggestion}?` : `Settings are: ${names.join(", ")}.`;
        return `${place(key)}there is no setting "${key}". ${cure}`;
      })
      .join("\n  ");
  }
  return `${place(String(issue.path[0]))}${issue.path.join(".")}: ${issue.message}`;
}

/** Values of settings, typed as flags give them. Throws `C-CONFIG`, with all that is wrong. */
export function checkSettings(
  command: Command,
  value: unknown,
  source: string,
  lines: ReadonlyMap<string, number> = new Map(),
): Record<string, unknown> {
  const result = settingsSchema(command).safeParse(value ?? {});
  if (result.success) return result.data;
  const names = [...new Set(settingsOf(command).map(settingName))];
  const issues = result.error.issues.map((issue) => describeIssue(issue, names, lines));
  throw new SidenetError("C-CONFIG", `${source} has settings that cannot be used:\n  ${issues.join("\n  ")}`);
}

/** Parses YAML, and with it JSON. Throws `C-CONFIG`. */
export function parseConfig(command: Command, text: string, source: string): Record<string, unknown> {
  const lineCounter = new LineCounter();
  const document = parseDocument(text, { lineCounter, prettyErrors: true });
  if (document.errors.length > 0) {
    throw new SidenetError(
      "C-CONFIG",
      `${source} is neither YAML nor JSON: ${document.errors[0].message.split("\n")[0].replace(/:$/, ".")}`,
    );
  }
  const lines = new Map<string, number>();
  for (const pair of isMap(document.contents) ? document.contents.items : []) {
    const { key } = pair;
    if (isScalar(key) && key.range) lines.set(String(key.value), lineCounter.linePos(key.range[0]).line);
  }
  return checkSettings(command, document.toJS(), source, lines);
}

/** `--set name=value`, the value as YAML has it. Throws `C-CONFIG`. */
export function parseAssignments(command: Command, assignments: readonly string[]): Record<string, unknown> {
  const values = assignments.map((text): [string, unknown] => {
    const [, name, value] = /^([^=]+)=(.*)$/s.exec(text) ?? [];
    if (name === undefined) throw new SidenetError("C-CONFIG", `--set wants name=value, not "${text}".`);
    return [name.trim(), parseDocument(value).toJS()];
  });
  return checkSettings(command, Object.fromEntries(values), "--set");
}

/** Gives a command values where the command line has given none; later layers count more. */
export function applySettings(command: Command, ...layers: readonly Record<string, unknown>[]): void {
  const merged: Record<string, unknown> = Object.assign({}, ...layers);
  for (const option of settingsOf(command)) {
    const value = merged[settingName(option)];
    const attribute = option.attributeName();
    if (value === undefined || command.getOptionValueSource(attribute) === "cli") continue;
    command.setOptionValueWithSource(attribute, value, "config");
  }
}

/** The settings in force, defaults included, as JSON has them. */
export function currentSettings(command: Command): Settings {
  const all = settingsOf(command).map((option) => [
    settingName(option),
    command.getOptionValue(option.attributeName()),
  ]);
  return JSON.parse(JSON.stringify(Object.fromEntries(all))) as Settings;
}

/** A config file with every setting and its description; given settings are active, the others are commented out. */
export function configText(command: Command, head: string): string {
  const lines = settingsOf(command).map((option) => {
    const attribute = option.attributeName();
    const source = command.getOptionValueSource(attribute);
    const given = source !== undefined && source !== "default";
    const value: unknown = command.getOptionValue(attribute);
    const choices = option.argChoices ? ` (${option.argChoices.join(", ")})` : "";
    const example = value === undefined ? "" : ` ${shown(value)}`;
    return `# ${option.description}${choices}\n${given ? "" : "#"}${settingName(option)}:${example}\n`;
  });
  const comment = head.replace(/^/gm, "# ").replace(/ +$/gm, "");
  return `${comment}\n\n${lines.join("\n")}`;
}
