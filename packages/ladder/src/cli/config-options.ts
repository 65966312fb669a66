/** `--config` and `--set`: the settings of a command from a file, by the names of its flags. */
import { SidenetError } from "@sidenet/tensor";
import type { Command } from "commander";
import { readText } from "../node/file-source.ts";
import { applySettings, parseAssignments, parseConfig, settingName } from "./settings.ts";

/** Settings by name, in layers of which later ones count more. */
export type Layers = readonly Record<string, unknown>[];

interface ConfigFlags {
  readonly config?: string;
  readonly set?: readonly string[];
}

/** What `--config` and `--set` say. Throws `C-CONFIG`, and `L-FILE-MISSING` or `L-FILE` for the file. */
async function readLayers(command: Command): Promise<Layers> {
  const { config, set = [] } = command.opts<ConfigFlags>();
  const assigned = parseAssignments(command, set);
  if (config === undefined) return [assigned];
  return [parseConfig(command, await readText(config), config), assigned];
}

function checkNeeded(command: Command, needed: readonly string[]): void {
  const given = new Set(
    command.options
      .filter((option) => command.getOptionValue(option.attributeName()) !== undefined)
      .map(settingName),
  );
  const missing = needed.filter((name) => !given.has(name)).map((name) => `--${name}`);
  if (missing.length === 0) return;
  throw new SidenetError(
    "C-USAGE",
    `${missing.join(", ")} must be given, as a flag or in --config. See sidenet ${command.name()} --help.`,
  );
}

/**
 * Gives a command whose other options are defined `--config` and `--set`, which fill in what the command line leaves out
 * before the command's action runs. Options that the command requires, and `needed`, may come from there too. `inherit`
 * may bring in more settings, once those are in force. What is wrong is thrown as `C-CONFIG` or `C-USAGE`.
 */
export function addConfigOptions(
  command: Command,
  needed: readonly string[] = [],
  inherit?: (layers: Layers) => Promise<void>,
): Command {
  const required = command.options.filter(({ mandatory }) => mandatory);
  for (const option of required) option.makeOptionMandatory(false); // commander asks before a file can be read
  const names = [...new Set([...required.map(settingName), ...needed])];
  return command
    .option(
      "--config <file>",
      "YAML or JSON file with settings named like these flags; flags take precedence",
    )
    .option("--set <name=value...>", "a setting with its YAML value; takes precedence over --config")
    .hook("preAction", async () => {
      const layers = await readLayers(command);
      applySettings(command, ...layers);
      await inherit?.(layers);
      checkNeeded(command, names);
    });
}
