// A GPU without memory for what is asked of it: one error that says so, and a device that goes on with less.
import type { SidenetError, Tensor, WebGpuDevice } from "@sidenet/tensor";
import { afterEach, describe, expect, it } from "vitest";
import { openSmallGpu } from "./small-gpu.ts";
import { gpuAvailable } from "./support.ts";

const MIB = 2 ** 20;
const opened: WebGpuDevice[] = [];
const open = async (options: Parameters<typeof openSmallGpu>[0] = {}) => {
  const small = await openSmallGpu(options);
  opened.push(small.gpu);
  return small;
};
afterEach(() => {
  for (const device of opened.splice(0)) device.dispose();
});

const failureOf = async (work: () => Promise<unknown>): Promise<SidenetError> => {
  try {
    await work();
  } catch (error) {
    return error as SidenetError;
  }
  throw new Error("there was memory enough");
};

/** Ones of `mib` MiB; then the sum of them and itself, of which the last element is read. */
async function doubled(gpu: WebGpuDevice, mib: number): Promise<number> {
  const size = mib * (MIB / 4);
  using y = gpu.scope(() => {
    const x = gpu.tensor(new Float32Array(size).fill(1), [size]);
    return gpu.ops.slice(gpu.ops.add(x, x), { axis: 0, start: size - 1, count: 1 });
  });
  return (await y.read())[0];
}

describe.runIf(gpuAvailable)("a GPU without memory", () => {
  it("says so, and not that a kernel is wrong, and computes again when there is memory", async () => {
    const { gpu, limit } = await open();
    expect(await doubled(gpu, 1)).toBe(2);
    limit(6);
    const error = await failureOf(() => doubled(gpu, 5));
    expect(error.code).toBe("T-OUT-OF-MEMORY");
    expect(error.message).toMatch(/asked for 5\.0 MiB \(workspace\), but the device said: .*no memory left/);
    await gpu.synchronize(); // nothing is left over of the error
    limit(100);
    expect(await doubled(gpu, 5)).toBe(2); // and the buffers that failed are not used again
    expect(gpu.memory.liveCount).toBe(0);
  });

  it("says so where an op is called after the failure was heard of", async () => {
    const { gpu, limit } = await open();
    using one = gpu.tensor([1], [1]);
    limit(3);
    const failed = gpu.zeros([MIB]);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(() => gpu.ops.neg(one)).toThrow(/T-OUT-OF-MEMORY.*zeros asked for 4\.0 MiB/);
    failed.dispose();
    using minus = gpu.ops.neg(one);
    expect([...(await minus.read())]).toEqual([-1]);
  });

  it("says so when the copy that a read needs has no room", async () => {
    const { gpu, limit } = await open();
    using x = gpu.zeros([MIB]);
    await gpu.synchronize();
    limit(6);
    const error = await failureOf(() => x.read());
    expect(error.message).toMatch(/T-OUT-OF-MEMORY.*read of tensor .* asked for 4\.0 MiB/);
    limit(20);
    expect((await x.read()).length).toBe(MIB);
  });

  it("gives the memory of free buffers to other sizes after a failure", async () => {
    const { gpu, limit } = await open();
    limit(600);
    const hold = (mib: number, count: number) => {
      const made: Tensor[] = [];
      for (let i = 0; i < count; i++) made.push(gpu.empty([mib * (MIB / 4)]));
      return made;
    };
    const first = hold(100, 7);
    const error = await failureOf(() => gpu.synchronize());
    expect(error.code).toBe("T-OUT-OF-MEMORY");
    for (const tensor of first) tensor.dispose();
    const second = hold(90, 6);
    await gpu.synchronize();
    for (const tensor of second) tensor.dispose();
  });

  it("reads a tensor of more than half its largest buffer", async () => {
    const { gpu } = await open({ maxBufferMib: 300 });
    using x = gpu.zeros([70 * MIB]); // 280 MiB; the next power of two is no buffer of this GPU
    expect((await x.read()).length).toBe(70 * MIB);
  });
});
