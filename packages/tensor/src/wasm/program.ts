import type { Callee } from "./assembler/function.ts";
import { ModuleBuilder, type ModuleOptions } from "./assembler/module.ts";
import { kernelNames, kernels } from "./kernels/index.ts";
import { emitLibrary } from "./kernels/library.ts";
import { emitThreads } from "./threads.ts";

/** The WebAssembly module of all kernels: table entry i is kernel i of `kernelNames`. */
export function emitProgram(options: ModuleOptions): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder(options);
  const library = emitLibrary(m);
  const table: Callee[] = kernelNames.map((name) =>
    m.function(3, (f) => {
      const [task, args, scratch] = f.params;
      kernels[name].emit(f, args, { task, scratch, library });
    }),
  );
  emitThreads(m);
  return m.finish(table);
}
