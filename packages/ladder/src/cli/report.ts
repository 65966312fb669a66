import type { Command } from "commander";
import { readReportData, writeReport } from "../node/report.ts";
import { jsonOption } from "./device.ts";
import type { Outcome, Session } from "./session.ts";
import type { Report } from "./terminal.ts";

const HELP = `
DIR is the --output of train or compare, finished or not. The page is a single self-contained file.

Example:
  $ npx sidenet report out/run`;

export function defineReport(program: Command, session: Session): void {
  program
    .command("report")
    .description(
      "Write report.html for a run or a comparison: curves, memory, time by op, samples, settings.",
    )
    .argument("<dir>", "folder that train or compare wrote")
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(report));
}

async function report(out: Report, dir: string): Promise<Outcome> {
  const { runs } = await readReportData(dir);
  const path = await writeReport(dir);
  out.print(path);
  return { json: { report: path, runs: runs.map(({ name }) => name) } };
}
