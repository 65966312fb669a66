import { CpuDevice, type Device, type DType, TestRandom } from "@sidenet/tensor";
import { relativeError } from "../check/compare.ts";

/** A small computation on a device, held against the CPU reference. */
export interface SmokeResult {
  readonly dtype: DType;
  readonly passed: boolean;
  /** Largest relative error (2-norm); null when a value was not finite. */
  readonly error: number | null;
  readonly seconds: number;
}

const SHAPE = { N: 37, C: 100, O: 67 };
const TOLERANCE = { f32: 1e-5, f16: 2e-3 } as const;

/** linear(rmsNorm(x, gain), w): the two kinds of kernel that a model spends its time in. */
async function compute(device: Device, dtype: "f32" | "f16"): Promise<ArrayLike<number>> {
  const { N, C, O } = SHAPE;
  const pick = new TestRandom(1);
  using y = device.scope(() => {
    const x = device.tensor(pick.normals(N * C), [N, C], { dtype });
    const gain = device.tensor(pick.normals(C), [C], { dtype });
    const w = device.tensor(pick.normals(O * C), [O, C], { dtype });
    return device.ops.linear(device.ops.rmsNorm(x, gain), w);
  });
  return y.read();
}

/** Runs it for each storage type of the device. Throws what the device throws. */
export async function smokeTest(device: Device): Promise<SmokeResult[]> {
  const reference = new CpuDevice({ precision: "f64" });
  const results: SmokeResult[] = [];
  for (const dtype of device.profile.f16 ? (["f32", "f16"] as const) : (["f32"] as const)) {
    const started = performance.now();
    const error = relativeError(await compute(device, dtype), await compute(reference, "f32"));
    const seconds = (performance.now() - started) / 1000;
    const finite = Number.isFinite(error) ? error : null;
    results.push({ dtype, passed: error <= TOLERANCE[dtype], error: finite, seconds });
  }
  return results;
}
