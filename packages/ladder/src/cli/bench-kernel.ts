/** Options of `sidenet bench` for a kernel of the user's. */
import { basename } from "node:path";
import { type Device, type DType, SidenetError, WebGpuDevice } from "@sidenet/tensor";
import { type Command, InvalidArgumentError, Option } from "commander";
import { type KernelBuffer, measureKernel } from "../bench/kernel.ts";
import { type BenchReport, reportOn } from "../bench/suite.ts";
import { readText } from "../node/file-source.ts";
import { positiveInteger, positiveNumber, repeatable } from "./options.ts";

export interface KernelOptions {
  readonly kernel?: string;
  readonly entry: string;
  readonly grid: readonly [number, number, number];
  readonly buffer: readonly KernelBuffer[];
  readonly param: Readonly<Record<string, number>>;
  readonly flops: number;
}

/** Names of these options and of those of the suite, as commander keeps them: one or the other. */
export const KERNEL_ONLY = ["entry", "grid", "buffer", "param", "flops"];
export const SUITE_ONLY = ["models", "tokens", "dtypes", "only", "check"];

const TYPES: readonly string[] = ["f32", "f16", "i32", "u32"] satisfies DType[];

function refuseTwice(name: string, isKnown: boolean): void {
  if (isKnown) throw new InvalidArgumentError(`There is another for ${name}.`);
}

/** "x=4096" or "ids=4096:i32". */
function parseBuffer(text: string, all: readonly KernelBuffer[] = []): KernelBuffer[] {
  const [, name, count, dtype = "f32"] = /^(\w+)=(\d+)(?::(\w+))?$/.exec(text) ?? [];
  if (name === undefined || Number(count) < 1 || !TYPES.includes(dtype)) {
    throw new InvalidArgumentError(
      `Wanted NAME=ELEMENTS or NAME=ELEMENTS:TYPE, a type of ${TYPES.join(", ")}.`,
    );
  }
  refuseTwice(
    name,
    all.some((buffer) => buffer.name === name),
  );
  return [...all, { name, elements: Number(count), dtype: dtype as DType }];
}

/** "n=4096". */
function parseParam(text: string, all: Readonly<Record<string, number>> = {}): Record<string, number> {
  const [, name, value] = /^(\w+)=(\S+)$/.exec(text) ?? [];
  if (name === undefined || !Number.isFinite(Number(value))) {
    throw new InvalidArgumentError("Wanted NAME=NUMBER.");
  }
  refuseTwice(name, Object.hasOwn(all, name));
  return { ...all, [name]: Number(value) };
}

/** "64" or "64,8,1". */
function parseGrid(text: string): [number, number, number] {
  const [x, y = 1, z = 1, ...more] = text.split(",").map(positiveInteger);
  if (more.length > 0) throw new InvalidArgumentError("Wanted one to three numbers.");
  return [x, y, z];
}

export function addKernelOptions(command: Command): Command {
  return command
    .option("--kernel <file>", "time a WGSL file of your own instead, on WebGPU; results are not checked")
    .option("--entry <name>", "its entry point", "main")
    .option("--grid <x,y,z>", "workgroups", parseGrid, [1, 1, 1])
    .addOption(
      new Option(
        "--buffer <name=elements:type>",
        "a storage binding, by the name of its variable; default type f32",
      )
        .argParser(repeatable(parseBuffer))
        .default([], "none"),
    )
    .addOption(
      new Option("--param <name=number>", "a field of its struct Params")
        .argParser(repeatable(parseParam))
        .default({}, "none"),
    )
    .addOption(
      new Option("--flops <n>", "operations of a call, for GFLOP/s")
        .argParser(positiveNumber)
        .default(0, "unknown"),
    );
}

/** Times `--kernel`. Throws `L-FILE-MISSING`, `L-FILE`, and what `measureKernel` throws. */
export async function benchKernel(
  device: Device,
  path: string,
  { entry, grid, buffer, param, flops }: KernelOptions,
  timeMs: number,
): Promise<BenchReport> {
  if (!(device instanceof WebGpuDevice)) {
    throw new SidenetError("C-USAGE", `--kernel runs on webgpu, not on ${device.kind}.`);
  }
  const text = await readText(path);
  const kernel = { name: basename(path, ".wgsl"), text, entry, grid, buffers: buffer, params: param, flops };
  return reportOn(device, timeMs, async function* () {
    yield await measureKernel(device, kernel, timeMs);
  });
}
