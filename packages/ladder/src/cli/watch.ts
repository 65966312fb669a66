import type { Command } from "commander";
import { serveReport } from "../node/report-server.ts";
import { jsonOption } from "./device.ts";
import { numberWithin } from "./options.ts";
import type { Outcome, Session } from "./session.ts";
import type { Report } from "./terminal.ts";

const HELP = `
The page is that of sidenet report and follows the run. It is served until Ctrl-C.

Example:
  $ npx sidenet watch out/run`;

export function defineWatch(program: Command, session: Session): void {
  program
    .command("watch")
    .description("Serve the report of a running training run, on this machine only.")
    .argument("<dir>", "folder that train or compare writes")
    .option("--port <n>", "port; 0: any free port", numberWithin(0, 65535), 8377)
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(watch));
}

async function watch(report: Report, dir: string, { port }: { port: number }): Promise<Outcome> {
  const server = await serveReport(dir, port);
  report.note(`${server.url}  (Ctrl-C ends it)`);
  await new Promise<void>((resolve) => {
    process.once("SIGINT", () => resolve()).once("SIGTERM", () => resolve());
  });
  await server.close();
  return { json: { url: server.url } };
}
