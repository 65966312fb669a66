/// <reference types="@webgpu/types" preserve="true" />
import { IMAGE_PITCH, IMAGE_PITCH_BYTES } from "../image.ts";
import type { Pooled, PooledTexture } from "./buffer-pool.ts";

export const IMAGE_FORMAT = "rgba32uint";

const TEXTURE_USAGE = { COPY_DST: 2, STORAGE_BINDING: 8 } as const; // fixed by the specification, as in buffer-pool.ts

/** A texture for a tensor's image (op.ts, `KernelContext.image`). */
export const createImage = (gpu: GPUDevice, sizeBytes: number): GPUTexture =>
  gpu.createTexture({
    size: [IMAGE_PITCH, sizeBytes / IMAGE_PITCH_BYTES],
    format: IMAGE_FORMAT,
    usage: TEXTURE_USAGE.COPY_DST | TEXTURE_USAGE.STORAGE_BINDING,
  });

/** Whether what a storage holds is a texture. */
export const isImage = (handle: unknown): handle is PooledTexture =>
  "createView" in (handle as Pooled<GPUBuffer | GPUTexture>).gpu;
