import { readFileSync } from "node:fs";
import { Command } from "commander";
import { defineCheck } from "./check.ts";
import { defineCompare } from "./compare.ts";
import { defineConvert } from "./convert.ts";
import { defineDoctor } from "./doctor.ts";
import { defineExport } from "./export.ts";
import { defineGenerate } from "./generate.ts";
import { definePlan } from "./plan.ts";
import { Session } from "./session.ts";
import type { Terminal } from "./terminal.ts";
import { defineTrain } from "./train.ts";

/** The package's version; its manifest stands beside `src` and `dist`. */
export function packageVersion(): string {
  const manifest = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(manifest) as { version: string }).version;
}

function buildProgram(session: Session): Command {
  const version = packageVersion();
  const program = new Command("sidenet")
    .description("Fine-tune language models with side networks, on WebGPU.")
    .version(version)
    .showHelpAfterError("(sidenet --help lists the commands, sidenet <command> --help the options of one)")
    .configureOutput({
      writeOut: (text) => session.terminal.out(text),
      writeErr: (text) => session.terminal.err(text),
    })
    .exitOverride(); // throws instead of ending the process
  defineTrain(program, session);
  defineCompare(program, session);
  definePlan(program, session);
  defineGenerate(program, session);
  defineConvert(program, session);
  defineExport(program, session);
  defineCheck(program, session);
  defineDoctor(program, session, version);
  return program;
}

/** Runs `sidenet` with these arguments and returns its exit code. Never throws. */
export async function runSidenet(args: readonly string[], terminal: Terminal): Promise<number> {
  const session = new Session(terminal, args.includes("--json"));
  try {
    await buildProgram(session).parseAsync([...args], { from: "user" });
  } catch (error) {
    session.fail(error);
  }
  return session.exitCode;
}
