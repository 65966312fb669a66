/**
 * A type of WebGPU as the user's project declares it: in its `lib` ("DOM" since TypeScript 6) or by `@webgpu/types`; unknown in
 * a project that does neither. The declarations of this package ask for none of them, since two do not compile together.
 */
export type WebGpuType<Name extends string> = typeof globalThis extends {
  readonly [_ in Name]: { prototype: infer Type };
}
  ? Type
  : unknown;
