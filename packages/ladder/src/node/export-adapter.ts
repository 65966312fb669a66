/** A trained adapter on its way to other programs. */
import { readdir } from "node:fs/promises";
import type { Device } from "@sidenet/tensor";
import { openAdapter, readBackboneSetup, saveAdapter } from "./adapter-files.ts";
import type { HubOptions } from "./hub.ts";
import { openModel } from "./open-model.ts";
import { checkOutput, sizeOfFiles, writeFolderAtomic } from "./output-folder.ts";

/** Which adapter is written, in what type, and where to. */
export interface ExportOptions {
  readonly model: string;
  readonly adapter: string;
  readonly output: string;
  readonly type: "f32" | "f16" | "bf16";
  readonly overwrite: boolean;
  /** How a model on the hub is fetched. */
  readonly hub?: HubOptions;
}

/** What was written. */
export interface ExportSummary {
  readonly model: string;
  readonly output: string;
  readonly format: "adapter";
  /** "peft": Python's PEFT reads it; "ladder": docs/adapter-format.md says how. */
  readonly kind: "peft" | "ladder" | "head";
  readonly method: string;
  readonly dtype: ExportOptions["type"];
  readonly parameters: number;
  readonly size_bytes: number;
  readonly files: readonly string[];
}

const DTYPES = { f32: "F32", f16: "F16", bf16: "BF16" } as const;

/**
 * Writes an adapter's two files to a new folder, which appears whole or not at all, after loading it for its model: what is
 * written fits. Throws `L-OUTPUT`, `L-ADAPTER-VALUES`, and what opening model and adapter throws.
 */
export async function exportAdapter(device: Device, options: ExportOptions): Promise<ExportSummary> {
  const { output, type } = options;
  await checkOutput(output, "folder", options.overwrite, [options.model, options.adapter]);
  const model = await openModel(options.model, options.hub);
  try {
    using adapter = await openAdapter(options.adapter, device, model.config);
    const setup = await readBackboneSetup(options.adapter);
    const base = { name: model.name, config: model.config, ...setup };
    return await writeFolderAtomic(output, async (folder) => {
      await saveAdapter(folder, adapter, base, DTYPES[type]);
      const files = (await readdir(folder)).sort();
      return {
        model: options.model,
        output,
        format: "adapter",
        kind: adapter.side ? "ladder" : adapter.head ? "head" : "peft",
        method: adapter.method,
        dtype: type,
        parameters: adapter.parameters.count,
        size_bytes: await sizeOfFiles(folder, files),
        files,
      };
    });
  } finally {
    await model.close();
  }
}
