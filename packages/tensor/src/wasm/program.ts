import type { Callee } from "./assembler/function.ts";
import { ModuleBuilder, type ModuleOptions } from "./assembler/module.ts";
import { kernelNames, kernels } from "./kernels/index.ts";
import { emitLibrary } from "./kernels/library.ts";
import { emitThreads } from "./threads.ts";

/**
 * Emits the WebAssembly module: the functions that kernels call, all kernels, and the thread loop. Entry i of its function table
 * is kernel i of `kernelNames`, a function (task, address of arguments, address of scratch).
 */
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
