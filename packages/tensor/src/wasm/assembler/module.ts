import { sized, text, unsigned, vector } from "./encode.ts";
import { type Callee, type Features, FunctionBuilder, TYPE_CODES } from "./function.ts";

const MAGIC_AND_VERSION = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];
const SECTION = { type: 1, import: 2, function: 3, table: 4, export: 7, element: 9, code: 10 } as const;
const FUNCTION_TYPE = 0x60;
const FUNCREF = 0x70;
const KIND = { function: 0, memory: 2 } as const;

/** Pages of 64 KiB in 4 GiB, the limit of 32-bit addresses. */
export const MAX_PAGES = 65536;

export interface ModuleOptions extends Features {
  /** Whether the memory is shared between threads. */
  readonly shared: boolean;
}

/** Builds a module: functions of i32 parameters without results, one imported memory `env.memory`, and one function table. */
export class ModuleBuilder {
  readonly options: ModuleOptions;
  readonly #bodies: { paramCount: number; code: number[] }[] = [];
  readonly #exports: { name: string; index: number }[] = [];

  constructor(options: ModuleOptions) {
    this.options = options;
  }

  /** Adds a function, whose body `emit` builds. */
  function(paramCount: number, emit: (f: FunctionBuilder) => void, exportAs?: string): Callee {
    const f = new FunctionBuilder(paramCount, this.options);
    emit(f);
    const index = this.#bodies.length;
    this.#bodies.push({ paramCount, code: f.finish() });
    if (exportAs !== undefined) this.#exports.push({ name: exportAs, index });
    return { index };
  }

  /** The type number for `callIndirect` of functions with `paramCount` parameters. */
  static typeOf(paramCount: number): number {
    return paramCount;
  }

  /** The binary module; `table` lists the functions that `callIndirect` calls by index. */
  finish(table: readonly Callee[]): Uint8Array<ArrayBuffer> {
    const maxParams = Math.max(0, ...this.#bodies.map(({ paramCount }) => paramCount));
    // Type n is that of functions with n parameters.
    const types = Array.from({ length: maxParams + 1 }, (_, n) => [
      FUNCTION_TYPE,
      ...vector(Array.from({ length: n }, () => [TYPE_CODES.i32])),
      0,
    ]);
    const limits = [this.options.shared ? 0x03 : 0x01, ...unsigned(1), ...unsigned(MAX_PAGES)];
    const section = (id: number, content: readonly number[]): number[] => [id, ...sized(content)];
    const indices = table.map(({ index }) => unsigned(index));
    return Uint8Array.from([
      ...MAGIC_AND_VERSION,
      ...section(SECTION.type, vector(types)),
      ...section(SECTION.import, vector([[...text("env"), ...text("memory"), KIND.memory, ...limits]])),
      ...section(SECTION.function, vector(this.#bodies.map(({ paramCount }) => unsigned(paramCount)))),
      ...section(SECTION.table, vector([[FUNCREF, 0x00, ...unsigned(table.length)]])),
      ...section(
        SECTION.export,
        vector(this.#exports.map(({ name, index }) => [...text(name), KIND.function, ...unsigned(index)])),
      ),
      // Fills table 0 from entry 0 on (i32.const 0, end).
      ...section(SECTION.element, vector([[0x00, 0x41, 0x00, 0x0b, ...vector(indices)]])),
      ...section(SECTION.code, vector(this.#bodies.map(({ code }) => sized(code)))),
    ]);
  }
}
