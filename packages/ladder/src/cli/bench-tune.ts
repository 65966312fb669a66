/** `sidenet bench --tune`. */
import { dirname } from "node:path";
import { type Device, SidenetError, WebGpuDevice } from "@sidenet/tensor";
import { tileCachePath, tileCacheText } from "@sidenet/tensor/node";
import { tuneTiles } from "../bench/tune.ts";
import { writeFileAtomic } from "../node/atomic-write.ts";
import { makeFolder } from "../node/make-folder.ts";
import { checkOutputFile } from "../node/output-folder.ts";
import { EXIT, type Outcome } from "./session.ts";
import { formatTable } from "./table.ts";
import type { Report } from "./terminal.ts";

/** Tries every tile of the table on this adapter and keeps the best for later runs. Throws `T-DEVICE`, `L-FILE`. */
export async function benchTune(device: Device, report: Report): Promise<Outcome> {
  if (!(device instanceof WebGpuDevice)) {
    throw new SidenetError(
      "T-DEVICE",
      `--tune chooses tiles of WebGPU kernels, and ${device.label} has none.`,
    );
  }
  const file = tileCachePath();
  await makeFolder(dirname(file)); // told now, not after minutes
  await checkOutputFile(file, []);
  const { tiles, choices } = await tuneTiles(device, ({ name, chosen }) => report.note(`${name}: ${chosen}`));
  const rows = choices.flatMap(({ name, chosen, tried }) =>
    tried.map(({ value, ratio }) => [`${name} ${value}`, ratio.toFixed(2), value === chosen ? "chosen" : ""]),
  );
  await writeFileAtomic(file, tileCacheText(device, tiles));
  report.print(formatTable(["tile", "time, of the default's", ""], rows));
  report.print(`\nwritten: ${file}`);
  return { json: { device: device.label, tiles, choices, file }, exitCode: EXIT.ok };
}
