import tab from "@bomb.sh/tab/commander";
import { SidenetError } from "@sidenet/tensor";
import { Command } from "commander";
import { packageVersion } from "../node/version.ts";
import { defineBench } from "./bench.ts";
import { defineChat } from "./chat.ts";
import { defineCheck } from "./check.ts";
import { defineCompare } from "./compare.ts";
import { defineConvert } from "./convert.ts";
import { defineDoctor } from "./doctor.ts";
import { defineEval } from "./eval.ts";
import { defineExport } from "./export.ts";
import { defineGenerate } from "./generate.ts";
import { defineInit } from "./init.ts";
import { definePlan } from "./plan.ts";
import { defineReport } from "./report.ts";
import { Session } from "./session.ts";
import type { Terminal } from "./terminal.ts";
import { defineTrain } from "./train.ts";
import { defineWatch } from "./watch.ts";

export { packageVersion } from "../node/version.ts";

function buildProgram(session: Session): Command {
  const version = packageVersion();
  const program = new Command("sidenet")
    .description("Fine-tune language models with side networks, on WebGPU.")
    .version(version)
    .showHelpAfterError("(sidenet --help lists the commands)")
    .configureOutput({
      writeOut: (text) => session.terminal.out(text),
      writeErr: (text) => session.terminal.err(text),
    })
    .exitOverride(); // throws instead of ending the process
  defineCommands(program, session);
  for (const command of program.commands) {
    command.option("--quiet", "print only errors and the object of --json");
    command.hook("preAction", () => refuseEmpty(command));
    command.showHelpAfterError(`(sidenet ${command.name()} --help has the options, and examples)`);
  }
  defineCompletions(program);
  return program;
}

/** Options whose value may be no text at all. */
const TEXTS = ["prompt", "stop", "system"];

/** An empty name is that of a variable which was not set; as a path it would be this very folder. Throws `C-USAGE`. */
function refuseEmpty(command: Command): void {
  const given = command.options
    .filter((option) => !TEXTS.includes(option.attributeName()))
    .map((option) => [option.long, command.getOptionValue(option.attributeName())] as const);
  const [name] = [...given, ...command.args.map((value) => ["an argument", value] as const)].find(
    ([, value]) => value === "" || (Array.isArray(value) && value.includes("")),
  ) ?? [null];
  if (name) throw new SidenetError("C-USAGE", `${name} is empty. Is a variable not set?`);
}

/** Every command but the completions. */
export function defineCommands(program: Command, session: Session): void {
  defineTrain(program, session);
  defineCompare(program, session);
  definePlan(program, session);
  defineInit(program, session);
  defineReport(program, session);
  defineWatch(program, session);
  defineEval(program, session);
  defineGenerate(program, session);
  defineChat(program, session);
  defineConvert(program, session);
  defineExport(program, session);
  defineCheck(program, session);
  defineBench(program, session);
  defineDoctor(program, session, packageVersion());
}

/** What the shell asks for at each Tab is answered from the program itself. */
function defineCompletions(program: Command): void {
  tab(program, { completionCommandName: "completions" });
  program.commands
    .find((command) => command.name() === "completions")
    ?.description("Print a script that completes this command in bash, zsh, fish or powershell.")
    .addHelpText("after", "\nExample:\n  $ source <(npx sidenet completions bash)   # or in ~/.bashrc");
}

/** Runs `sidenet` with these arguments and returns its exit code. Never throws. */
export async function runSidenet(args: readonly string[], terminal: Terminal): Promise<number> {
  const session = new Session(terminal, args.includes("--json"), args.includes("--quiet"));
  try {
    await buildProgram(session).parseAsync([...args], { from: "user" });
  } catch (error) {
    session.fail(error);
  }
  return session.exitCode;
}
