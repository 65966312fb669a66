import { TEXTURE_PITCH, TEXTURE_PITCH_BYTES } from "../texture-layout.ts";
import type { Pooled, PooledTexture } from "./buffer-pool.ts";

export const TEXTURE_FORMAT = "rgba32uint";

const TEXTURE_USAGE = { COPY_DST: 2, STORAGE_BINDING: 8 } as const; // fixed by the specification, as in buffer-pool.ts

/** A texture with room for `sizeBytes` bytes of a tensor, as `textureBytes` rounds them. */
export const createTexture = (gpu: GPUDevice, sizeBytes: number): GPUTexture =>
  gpu.createTexture({
    size: [TEXTURE_PITCH, sizeBytes / TEXTURE_PITCH_BYTES],
    format: TEXTURE_FORMAT,
    usage: TEXTURE_USAGE.COPY_DST | TEXTURE_USAGE.STORAGE_BINDING,
  });

/** Whether a storage's memory is a texture. */
export const isTexture = (handle: unknown): handle is PooledTexture =>
  "createView" in (handle as Pooled<GPUBuffer | GPUTexture>).gpu;
