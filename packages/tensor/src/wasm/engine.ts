/** Types of the part of `WebAssembly` that is used: TypeScript has them only in its DOM library. */

export interface Memory {
  readonly buffer: ArrayBufferLike;
  grow(pages: number): number;
}

/** A compiled module, which can be sent to workers. */
export type Module = object;

interface Engine {
  validate(bytes: Uint8Array<ArrayBuffer>): boolean;
  compile(bytes: Uint8Array<ArrayBuffer>): Promise<Module>;
  readonly Memory: new (limits: { initial: number; maximum: number; shared: boolean }) => Memory;
  readonly Instance: new (
    module: Module,
    imports: { readonly env: { readonly memory: Memory } },
  ) => { readonly exports: Readonly<Record<string, unknown>> };
}

export const engine = (globalThis as unknown as { readonly WebAssembly: Engine }).WebAssembly;
