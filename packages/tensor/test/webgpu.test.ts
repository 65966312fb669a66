import {
  CpuDevice,
  type Device,
  MetaDevice,
  Random,
  type Tensor,
  unary,
  type WebGpuDevice,
} from "@sidenet/tensor";
import { openDevice, openNodeWebGpu } from "@sidenet/tensor/node";
import { afterEach, describe, expect, it, vi } from "vitest";
import { assertClose, gpuAvailable, type openTestGpu } from "./support.ts";

const opened: Device[] = [];
const open = async (options: Parameters<typeof openTestGpu>[0] = {}): Promise<WebGpuDevice> => {
  const device = await openNodeWebGpu({ poison: true, ...options });
  opened.push(device);
  return device;
};
afterEach(() => {
  for (const device of opened.splice(0)) device.dispose();
});

const normals = (size: number, stream = 0): Float32Array => new Random(1, stream).normals(size);

/** Runs the same calls on a GPU and on the reference and compares what they return. */
async function agrees(gpu: Device, calls: (device: Device) => ReturnType<Device["ops"]["add"]>, rel = 1e-5) {
  const cpu = new CpuDevice({ precision: "f64" });
  using got = gpu.scope(() => calls(gpu));
  using want = cpu.scope(() => calls(cpu));
  assertClose("result", await got.read(), await want.read(), { rel }, got.dtype);
}

describe.runIf(gpuAvailable)("the WebGPU engine", () => {
  it("computes the same when no tensor fits one binding", async () => {
    // 4 KiB bindings: a 64 x 96 matrix spans six of them, and every op below has to work in windows.
    const gpu = await open({ maxBindingBytes: 4096 });
    await agrees(gpu, (d) => {
      const x = d.tensor(normals(64 * 96), [64, 96]);
      const w = d.tensor(normals(80 * 96, 1), [80, 96]);
      const y = d.ops.linear(x, w);
      return d.ops.add(d.ops.silu(d.ops.rmsNorm(y)), d.ops.mul(y, y));
    });
    await agrees(gpu, (d) => {
      const table = d.tensor(normals(300 * 32), [300, 32]);
      const ids = d.tensor(
        new Int32Array(50).map((_, i) => (i * 37) % 300),
        [50],
        { dtype: "i32" },
      );
      return d.ops.embedding(ids, table);
    });
    await agrees(gpu, (d) => {
      const h = d.tensor(normals(70 * 32), [70, 32]);
      const w = d.tensor(normals(120 * 32, 1), [120, 32]);
      const targets = d.tensor(
        new Int32Array(70).map((_, i) => i),
        [70],
        { dtype: "i32" },
      );
      return d.run("lmHeadLoss", [h, w, targets], { chunkTokens: 64 }, ["dh"]).dh;
    });
  });

  it("computes the same with parameters in uniforms", async () => {
    const gpu = await open({ immediates: false });
    await agrees(gpu, (d) => {
      let x = d.tensor(normals(33 * 40), [33, 40]);
      for (let i = 0; i < 100; i++) x = d.ops.scale(d.ops.rmsNorm(x), { factor: 1 + i / 100 });
      return x;
    });
  });

  it("folds more than 65,535 workgroups over two axes", async () => {
    const gpu = await open();
    await agrees(gpu, (d) => d.ops.rmsNorm(d.tensor(normals(70_001 * 2), [70_001, 2])));
  });

  it("reads back every dtype", async () => {
    const gpu = await open();
    for (const [dtype, values] of [
      ["f32", [1.5, -2, 2 ** 100]],
      ["f16", [1.5, -2, 65504]],
      ["i32", [-7, 2 ** 31 - 1, 0]],
      ["u32", [7, 2 ** 32 - 1, 0]],
      ["u8", [0, 255, 1]],
    ] as const) {
      if (dtype === "f16" && !gpu.profile.f16) continue;
      using tensor = gpu.tensor(values, [3], { dtype });
      expect([...(await tensor.read())], dtype).toEqual([...values]);
    }
  });

  it("uploads from shared memory, and never clobbers commands that are still to run", async () => {
    const gpu = await open();
    const shared = new Float32Array(new SharedArrayBuffer(16)).fill(3);
    using sum = gpu.scope(() => {
      // The first tensor's buffer goes back to the pool and comes out again under the second upload.
      const first = gpu.scope(() => gpu.ops.scale(gpu.tensor(shared, [4]), { factor: 2 }));
      const second = gpu.scope(() => gpu.ops.scale(gpu.tensor([1, 1, 1, 1], [4]), { factor: 5 }));
      return gpu.ops.add(first, second);
    });
    expect([...(await sum.read())]).toEqual([11, 11, 11, 11]);
  });

  it("reuses buffers: a loop of equal steps holds no more after the tenth than after the second", async () => {
    const gpu = await open();
    using x = gpu.tensor(normals(1000), [10, 100]);
    const step = () => gpu.scope(() => gpu.ops.add(gpu.ops.rmsNorm(x), x));
    let after2 = 0;
    for (let i = 1; i <= 10; i++) {
      using y = step();
      await y.read();
      if (i === 2) after2 = gpu.statistics().bufferBytes;
    }
    expect(gpu.statistics().bufferBytes).toBe(after2);
    expect(gpu.memory.liveCount).toBe(1);
  });

  it("gives a repeated step the same buffers, in whatever order they came back: it makes no bind group anew", async () => {
    const gpu = await open({ poison: false }); // which binds buffers too
    using x = gpu.tensor(normals(1000), [10, 100]);
    const step = (freedFirst: number) => {
      const [a, b] = [gpu.ops.scale(x, { factor: 2 }), gpu.ops.rmsNorm(x)];
      const y = gpu.ops.add(a, b);
      for (const tensor of [a, b, y].slice(freedFirst)) tensor.dispose();
      for (const tensor of [a, b, y]) tensor.dispose();
    };
    step(0);
    const made = vi.spyOn(gpu.gpu, "createBindGroup");
    for (const freedFirst of [2, 1, 0]) step(freedFirst);
    await gpu.synchronize();
    expect(made).not.toHaveBeenCalled();
  });

  it("turns an impossible buffer into an error that names the request, and lives on", async () => {
    const gpu = await open();
    expect(() => gpu.empty([2 ** 30 - 1], { label: "huge" })).toThrow(/T-TOO-LARGE|T-OUT-OF-MEMORY/);
    await agrees(gpu, (d) => d.ops.add(d.tensor([1], [1]), d.tensor([2], [1])));
  });

  it("tells a lost device by a typed error", async () => {
    const gpu = await open();
    using x = gpu.tensor([1, 2], [2]);
    gpu.gpu.destroy();
    await gpu.gpu.lost;
    await expect((async () => (await gpu.ops.add(x, x).read())[0])()).rejects.toThrow(/T-DEVICE-LOST/);
  });

  it("tells a device that is lost while it is waited for by the same error", async () => {
    const gpu = await open();
    using x = gpu.tensor([1, 2], [2]);
    using y = gpu.ops.add(x, x);
    const reading = y.read();
    gpu.gpu.destroy();
    await expect(reading).rejects.toThrow(/T-DEVICE-LOST/);
  });

  it("times kernels by name", async () => {
    const gpu = await open({ poison: false });
    if (!gpu.gpu.features.has("timestamp-query")) return;
    using x = gpu.tensor(normals(100_000), [1000, 100]);
    gpu.startProfile();
    expect(() => gpu.startProfile()).toThrow(/T-PROFILE.*timed already/);
    for (let i = 0; i < 5; i++) gpu.ops.rmsNorm(x).dispose();
    const times = await gpu.stopProfile();
    expect(times).toHaveLength(1);
    expect(times[0].kernel).toMatch(/^norm\/forward$/);
    expect(times[0].dispatches).toBe(5);
    expect(times[0].elapsedMs).toBeGreaterThan(0);
    expect(await gpu.stopProfile()).toEqual([]);
  });

  it("leaves no rejection behind when it is lost while kernels are timed", async () => {
    const gpu = await open({ poison: false });
    if (!gpu.gpu.features.has("timestamp-query")) return;
    const unhandled: unknown[] = [];
    const note = (reason: unknown) => unhandled.push(reason);
    process.on("unhandledRejection", note);
    using x = gpu.tensor(normals(100), [10, 10]);
    gpu.startProfile();
    using y = gpu.ops.rmsNorm(x);
    const reading = y.read(); // submits, and so begins to read timestamps
    gpu.gpu.destroy();
    await expect(reading).rejects.toThrow(/T-DEVICE-LOST/);
    await new Promise((resolve) => setTimeout(resolve, 50));
    process.off("unhandledRejection", note);
    expect(unhandled).toEqual([]);
  });

  describe("a kernel of the caller's", () => {
    const DOUBLE = `
      @group(0) @binding(0) var<storage, read> x: array<f32>;
      @group(0) @binding(1) var<storage, read_write> y: array<f32>;
      @compute @workgroup_size(64)
      fn main(@builtin(global_invocation_id) id: vec3<u32>) {
        if (id.x < arrayLength(&y)) { y[id.x] = 2.0 * x[id.x]; }
      }`;

    it("that does not compile is told once, by its own error, and takes no other work with it", async () => {
      const gpu = await open();
      const call = (x: Tensor, y: Tensor) => ({ bind: { x, y }, params: {}, grid: 1 });
      using y = gpu.zeros([4]);
      using z = gpu.zeros([4]);
      for (let time = 0; time < 2; time++) {
        using x = gpu.scope(() => gpu.ops.scale(gpu.tensor([1, 2, 3, 4], [4]), { factor: 2 }));
        gpu.addKernel("mistyped", DOUBLE.replace("2.0 * x", "2.0 * z"));
        gpu.dispatch("mistyped/main", call(x, y));
        using after = gpu.ops.add(x, x);
        await expect(y.read()).rejects.toThrow(
          /T-KERNEL.*mistyped\.wgsl was refused by .*unresolved value 'z'/s,
        );
        expect([...(await x.read())]).toEqual([2, 4, 6, 8]);
        expect([...(await after.read())]).toEqual([4, 8, 12, 16]);
        gpu.addKernel("right", DOUBLE.replace("<storage, read>", "<storage>")); // which is the same
        gpu.dispatch("right/main", call(x, y));
        expect([...(await y.read())]).toEqual([4, 8, 12, 16]);
      }
      // The kernel of unary rows has a binding s, which few of them use.
      const row = unary({ name: "mistyped", doc: "y", wgsl: "return x * q;", f: (x) => x, flops: 1, rel: 0 });
      gpu.ops.call(row, z).dispose();
      const told = await gpu.synchronize().catch(String);
      expect(told).toMatch(/T-KERNEL.*unresolved value 'q'/s);
      expect(told).not.toContain("No tensor was bound");
      gpu.dispatch("right/nowhere" as "right/main", call(y, z));
      await expect(gpu.synchronize()).rejects.toThrow(/T-KERNEL.*"nowhere"/s);
      gpu.dispatch("right/main", { ...call(y, y), bind: { y } });
      await expect(gpu.synchronize()).rejects.toThrow(/T-KERNEL.*No tensor was bound to x\./);
      await gpu.synchronize();
    });

    it("that ran takes no other work with it where a later call binds too little", async () => {
      const gpu = await open();
      gpu.addKernel("fixed", DOUBLE.replace("x: array<f32>", "x: array<f32, 64>"));
      using large = gpu.tensor(new Float32Array(64).fill(3), [64]);
      using small = gpu.tensor([1, 2, 3, 4], [4]);
      using y = gpu.zeros([4]);
      const calling = (x: Tensor | null) =>
        gpu.dispatch("fixed/main", { bind: { x, y }, params: {}, grid: 1 });
      for (let time = 0; time < 2; time++) {
        calling(large);
        expect([...(await y.read())]).toEqual([6, 6, 6, 6]);
        using before = gpu.ops.add(small, small);
        calling(small);
        using after = gpu.ops.mul(small, small);
        await expect(gpu.synchronize()).rejects.toThrow(/T-KERNEL.*fixed\.wgsl was refused/);
        expect([...(await before.read()), ...(await after.read())]).toEqual([2, 4, 6, 8, 1, 4, 9, 16]);
        calling(null); // as large as it has to be
        await gpu.synchronize();
      }
    });

    it("is refused at once where a call of it cannot be", async () => {
      const gpu = await open();
      gpu.addKernel("double", DOUBLE);
      using x = gpu.tensor([1], [1]);
      using y = gpu.zeros([1]);
      using elsewhere = new CpuDevice().zeros([1]);
      const calling = (call: object) => () =>
        gpu.dispatch("double/main", { bind: { x, y }, params: {}, grid: 1, ...call });
      const freed = gpu.zeros([1]);
      freed.dispose();
      expect(calling({ bind: { x: freed, y } })).toThrow(/T-USE-AFTER-FREE.*double\/main/);
      expect(calling({ bind: { x: elsewhere, y } })).toThrow(/T-DEVICE.*is on cpu/);
      expect(calling({ bind: { x: undefined, y } })).toThrow(/T-KERNEL.*undefined is bound to x/);
      expect(calling({ bind: { x, z: y } })).toThrow(/T-KERNEL.*no binding z; it has x, y/);
      using half = gpu.profile.f16 ? gpu.zeros([1], { dtype: "f16" }) : null;
      if (half) expect(calling({ bind: { x: half, y } })).toThrow(/T-KERNEL.*"alias x_t = f32;"/);
      expect(() => gpu.dispatch("none/main", { bind: {}, params: {}, grid: 1 })).toThrow(/no kernel "none"/);
      expect(calling({ bind: { x: y, y } })).toThrow(/T-KERNEL.*x and y are bound to the same memory/);
      gpu.addKernel("both", DOUBLE.replace("<storage, read>", "<storage, read_write>"));
      using view = gpu.ops.reshape(y, { shape: [1, 1] });
      expect(() => gpu.dispatch("both/main", { bind: { x: view, y }, params: {}, grid: 1 })).toThrow(
        /T-KERNEL.*x and y are bound to the same memory, which both write/,
      );
      using parts = gpu.zeros([128]);
      using first = gpu.alias(parts, [64], 0);
      using second = gpu.alias(parts, [64], 64);
      gpu.dispatch("both/main", { bind: { x: first, y: second }, params: {}, grid: 1 });
      await gpu.synchronize();
      expect(calling({ params: undefined })).toThrow(/T-KERNEL.*wanted { bind, params, grid }/);
      gpu.addKernel(
        "counts",
        `struct Params { n: u32, i: i32, a: f32 }\nvar<immediate> p: Params;\n${DOUBLE}`,
      );
      const counting = (params: object) => () =>
        gpu.dispatch("counts/main", { bind: { x, y }, params: { n: 1, i: -1, a: 0.5, ...params }, grid: 1 });
      for (const params of [
        { n: -1 },
        { n: 1.5 },
        { n: 2 ** 32 },
        { n: Number.NaN },
        { i: 2 ** 31 },
        { n: undefined },
      ])
        expect(counting(params)).toThrow(/T-KERNEL.*parameter [ni] is/);
      expect(counting({ m: 1 })).toThrow(/T-KERNEL.*no parameter m; it has n, i, a/);
      counting({ i: -(2 ** 31), n: 2 ** 32 - 1 })();
      for (const grid of [[2 ** 16, 1, 1], 2 ** 33])
        expect(calling({ grid })).toThrow(/T-TOO-LARGE.*an axis holds 65535\. Spread/);
      for (const grid of [undefined, 1.5, -1, [1, 1], [1, Number.NaN, 1]])
        expect(calling({ grid })).toThrow(/T-KERNEL.*grid/);
      expect(() => gpu.addKernel("a/b", DOUBLE)).toThrow(/T-KERNEL/);
      for (const fields of ["n: u32, at: vec2<u32>", "n: u32, @size(8) i: u32", ""])
        expect(() =>
          gpu.addKernel("layout", `struct Params { ${fields} }\nvar<immediate> p: Params;\n${DOUBLE}`),
        ).toThrow(/T-KERNEL.*layout\.wgsl wants its parameters as/);
      expect(() =>
        gpu.addKernel("named", `struct Args { n: u32 }\nvar<immediate> p: Args;\n${DOUBLE}`),
      ).toThrow(/T-KERNEL.*"var<immediate> p: Params;"/);
      gpu.addKernel("prose", `// has no Params\n${DOUBLE}`);
      expect(() => gpu.addKernel("double", `${DOUBLE} `)).toThrow(/T-KERNEL.*name of its own/);
      calling({ grid: 0 })();
      calling({})();
      expect([...(await y.read())]).toEqual([2]);
    });
  });

  it("plans on meta what it then allocates, to the byte", async () => {
    const gpu = await open({ maxBindingBytes: 2 ** 16 });
    const meta = new MetaDevice(gpu.profile);
    for (const device of [gpu, meta]) {
      device.scope(() => {
        const h = device.empty([200, 64], { category: "weights" });
        const w = device.empty([500, 64], { category: "weights" });
        const targets = device.tensor(new Int32Array(200), [200], { dtype: "i32" });
        device.run("lmHeadLoss", [h, w, targets], {}, ["dh"]);
      });
    }
    expect(meta.memory.peak()).toEqual(gpu.memory.peak());
    expect(meta.flops).toBe(gpu.flops);
    await gpu.synchronize();
  });
});

it("opens a device by name and says why", async () => {
  for (const kind of ["cpu", "meta"] as const)
    expect(await openDevice(kind)).toMatchObject({ device: { kind }, reason: "asked for" });
});
