import { Device } from "../device.ts";
import type { HostArray } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { withKernelContext } from "../kernel-context.ts";
import type { KernelCall, KernelEntry } from "../op.ts";
import type { Execution } from "../op-call.ts";
import { DEFAULT_PROFILE, type DeviceProfile } from "../profile.ts";
import type { Tensor } from "../tensor.ts";
import { WasmContext } from "../wasm/context.ts";
import { runByKernels } from "../wasm/kernels/index.ts";

/**
 * Shapes, dtypes and memory accounting without data. It runs the same kernel functions as WebGPU (or, by its profile,
 * WebAssembly, or none as the reference), workspace included, but dispatches nothing. So it predicts the memory and the
 * operations of a run.
 */
export class MetaDevice extends Device {
  override readonly kind = "meta";
  override readonly holdsValues = false;
  override readonly label: string;
  override readonly profile: DeviceProfile;

  readonly #onDispatch: (kernel: KernelEntry, call: KernelCall) => void;

  /**
   * `profile` describes the adapter to imitate; its limits decide how work is split. `onDispatch` is called for each dispatch
   * that would run, with `wasm/NAME` for a WebAssembly kernel.
   */
  constructor(
    profile: Partial<DeviceProfile> = {},
    onDispatch: (kernel: KernelEntry, call: KernelCall) => void = () => {},
  ) {
    super();
    this.#onDispatch = onDispatch;
    this.profile = { ...DEFAULT_PROFILE, ...profile };
    this.label = `meta (${this.profile.adapterClass})`;
  }

  protected override allocate(): null {
    return null;
  }

  protected override deallocate(): void {}

  protected override write(): void {}

  protected override async download(tensor: Tensor): Promise<HostArray> {
    throw new SidenetError(
      "T-META",
      `${tensor} is on the meta device, which holds no values. Read its shape instead.`,
    );
  }

  protected override async finish(): Promise<void> {}

  protected override async findNonFinite(): Promise<null> {
    return null;
  }

  protected override compute(execution: Execution): void {
    const { row, io, dims, attrs } = execution;
    if (this.profile.reference) return;
    if (this.profile.wasm) {
      const context = new WasmContext(this, (kernel, _, { tasks }) =>
        this.#onDispatch(`wasm/${kernel}`, { bind: {}, params: {}, grid: tasks }),
      );
      runByKernels(context, execution);
      return;
    }
    withKernelContext(this, row.name, this.#onDispatch, (k) => row.kernel(k, io, dims, attrs));
  }
}
