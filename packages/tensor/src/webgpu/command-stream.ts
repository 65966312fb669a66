import { TEXTURE_ROW_BYTES, TEXTURE_WIDTH } from "../texture-layout.ts";
import { USAGE } from "./buffer-pool.ts";
import type { KernelTime } from "./kernel-time.ts";
import type { Pipeline } from "./pipelines.ts";
import { Profiler } from "./profiler.ts";

/** Number of dispatches per submit; the GPU starts on them while the host encodes the next. */
const DISPATCHES_PER_SUBMIT = 64;
const UNIFORM_SLOT_BYTES = 256;

/** Parameters for adapters without immediates: a ring of uniform slots, written ahead of the submit that reads them. */
class UniformRing {
  readonly layout: GPUBindGroupLayout;
  readonly #device: GPUDevice;
  readonly #buffer: GPUBuffer;
  readonly #group: GPUBindGroup;
  readonly #bytes = new Uint8Array(DISPATCHES_PER_SUBMIT * UNIFORM_SLOT_BYTES);
  #used = 0;

  constructor(device: GPUDevice) {
    this.#device = device;
    this.layout = device.createBindGroupLayout({
      entries: [{ binding: 0, visibility: 4, buffer: { type: "uniform", hasDynamicOffset: true } }],
    });
    this.#buffer = device.createBuffer({ size: this.#bytes.length, usage: USAGE.UNIFORM | USAGE.COPY_DST });
    this.#group = device.createBindGroup({
      layout: this.layout,
      entries: [{ binding: 0, resource: { buffer: this.#buffer, size: UNIFORM_SLOT_BYTES } }],
    });
  }

  bind(pass: GPUComputePassEncoder, params: Uint8Array): void {
    const offset = this.#used++ * UNIFORM_SLOT_BYTES;
    this.#bytes.set(params, offset);
    pass.setBindGroup(1, this.#group, [offset]);
  }

  /** The queue runs writes and submits in order, so slots may be used again after each submit. */
  upload(): void {
    if (this.#used > 0)
      this.#device.queue.writeBuffer(this.#buffer, 0, this.#bytes, 0, this.#used * UNIFORM_SLOT_BYTES);
    this.#used = 0;
  }
}

type Grid = readonly [number, number, number];

/** A command that can be issued again. */
export type Command =
  | {
      readonly kind: "dispatch";
      readonly operands: readonly [Pipeline, GPUBindGroup, ...Grid];
      /** The parameters. */
      readonly bytes: Uint8Array<ArrayBuffer>;
    }
  | {
      readonly kind: "copy to texture";
      readonly operands: readonly [
        source: GPUBuffer,
        sourceOffset: number,
        target: GPUTexture,
        sizeBytes: number,
      ];
      readonly bytes: Uint8Array<ArrayBuffer>;
    }
  | {
      readonly kind: "write";
      readonly operands: readonly [GPUBuffer];
      readonly bytes: Uint8Array<ArrayBuffer>;
    };

const NO_BYTES = new Uint8Array(0);

/** Encodes dispatches into one open compute pass and submits them in batches. */
export class CommandStream {
  readonly #device: GPUDevice;
  readonly #ring: UniformRing | null;
  readonly #afterSubmit: () => void;
  #encoder: GPUCommandEncoder | null = null;
  #pass: GPUComputePassEncoder | null = null;
  /** State of the open pass: setting the same value again would cost a microsecond. */
  #pipeline: Pipeline | null = null;
  #group: GPUBindGroup | null = null;
  #encoded = 0;
  #profiler: Profiler | null = null;
  /** Where commands are also written down, if anywhere. */
  log: Command[] | null = null;
  /** Dispatches and submits since the device was made. */
  readonly counts = { dispatches: 0, submits: 0 };

  constructor(device: GPUDevice, options: { immediates: boolean; afterSubmit: () => void }) {
    this.#device = device;
    this.#ring = options.immediates ? null : new UniformRing(device);
    this.#afterSubmit = options.afterSubmit;
  }

  get uniformLayout(): GPUBindGroupLayout | null {
    return this.#ring?.layout ?? null;
  }

  /** `params` is a whole buffer. */
  dispatch(pipeline: Pipeline, group: GPUBindGroup, params: Uint8Array<ArrayBuffer>, grid: Grid): void {
    this.log?.push({ kind: "dispatch", operands: [pipeline, group, ...grid], bytes: params.slice() });
    const pass = this.#openPass(pipeline.key);
    if (pipeline !== this.#pipeline) pass.setPipeline(pipeline.gpu);
    if (group !== this.#group) pass.setBindGroup(0, group);
    this.#pipeline = pipeline;
    this.#group = group;
    if (this.#ring) this.#ring.bind(pass, params);
    else pass.setImmediates(0, params.buffer); // Dawn's module takes twice as long over a view
    pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
    this.counts.dispatches++;
    this.#encoded++;
    if (this.#profiler) this.#closePass();
    if (this.#encoded >= DISPATCHES_PER_SUBMIT || this.#profiler?.full) this.submit();
  }

  copy(source: GPUBuffer, sourceOffset: number, target: GPUBuffer, sizeBytes: number): void {
    this.#closePass();
    this.#open().copyBufferToBuffer(source, sourceOffset, target, 0, sizeBytes);
  }

  /** Copies into a texture of texture-layout.ts, row by row. */
  copyToTexture(source: GPUBuffer, sourceOffset: number, target: GPUTexture, sizeBytes: number): void {
    const operands = [source, sourceOffset, target, sizeBytes] as const;
    this.log?.push({ kind: "copy to texture", operands, bytes: NO_BYTES });
    this.#closePass();
    const encoder = this.#open();
    const fullRows = Math.floor(sizeBytes / TEXTURE_ROW_BYTES);
    const from = { buffer: source, offset: sourceOffset, bytesPerRow: TEXTURE_ROW_BYTES };
    if (fullRows > 0) encoder.copyBufferToTexture(from, { texture: target }, [TEXTURE_WIDTH, fullRows]);
    const rest = Math.ceil((sizeBytes - fullRows * TEXTURE_ROW_BYTES) / 16);
    if (rest === 0) return;
    const last = { ...from, offset: sourceOffset + fullRows * TEXTURE_ROW_BYTES };
    encoder.copyBufferToTexture(last, { texture: target, origin: [0, fullRows] }, [rest, 1]);
  }

  /** Writes to the beginning of a buffer, after everything encoded so far. */
  write(target: GPUBuffer, bytes: Uint8Array<ArrayBuffer>): void {
    this.log?.push({ kind: "write", operands: [target], bytes: bytes.slice() });
    // writeBuffer acts before commands that are not submitted yet, and those may still use the buffer's previous contents.
    this.submit();
    this.#device.queue.writeBuffer(target, 0, bytes);
  }

  /** Issues a command again. */
  issue({ kind, operands, bytes }: Command): void {
    if (kind === "dispatch") {
      const [pipeline, group, x, y, z] = operands;
      this.dispatch(pipeline, group, bytes, [x, y, z]);
    } else if (kind === "write") this.write(operands[0], bytes);
    else this.copyToTexture(...operands);
  }

  /** Submits everything encoded so far, if anything. */
  submit(): void {
    if (this.#encoder !== null) {
      this.#closePass();
      const collect = this.#profiler?.resolve(this.#encoder) ?? null;
      this.#ring?.upload();
      this.#device.queue.submit([this.#encoder.finish()]);
      collect?.();
      this.counts.submits++;
      this.#encoder = null;
      this.#encoded = 0;
    }
    this.#afterSubmit();
  }

  get isProfiling(): boolean {
    return this.#profiler !== null;
  }

  startProfile(): void {
    this.submit();
    this.#profiler = new Profiler(this.#device);
  }

  async stopProfile(): Promise<KernelTime[]> {
    this.submit();
    const profiler = this.#profiler;
    this.#profiler = null;
    return profiler ? profiler.finish() : [];
  }

  #open(): GPUCommandEncoder {
    this.#encoder ??= this.#device.createCommandEncoder();
    return this.#encoder;
  }

  #openPass(label: string): GPUComputePassEncoder {
    if (this.#pass) return this.#pass;
    const timestampWrites = this.#profiler?.next(label.replace(/ .*/, ""));
    this.#pass = this.#open().beginComputePass(timestampWrites ? { timestampWrites } : {});
    return this.#pass;
  }

  #closePass(): void {
    this.#pass?.end();
    this.#pass = null;
    this.#pipeline = null;
    this.#group = null;
  }
}
