/** Measures the peak rates of a device, in the same run as the cases that are compared with them. */
import { type Device, type Tensor, WebGpuDevice } from "@sidenet/tensor";
import { timeOf } from "./measure.ts";

/** Measured peak rates of a device. */
export interface Ceilings {
  /** 10^9 bytes per second that the simplest kernel reads and writes. */
  readonly copyGigabytesPerSecond: number;
  /** 10^9 operations per second of multiply-adds in registers, 2 each. */
  readonly multiplyAddGflops: number;
  /** How the second was measured. */
  readonly multiplyAddBy: string;
}

const CHAINS = 12; // independent sums of four: enough to hide the latency of a multiply-add, and few enough for registers
const ROUNDS = 512;

/** A kernel of multiply-adds with almost no memory access. */
const MULTIPLY_ADD = `// a multiply-add rate: y[i] = a sum that the compiler cannot compute in advance
//   out y[N]   grid: N / 64
requires immediate_address_space;

struct Params { rounds: u32, factor: f32 }
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let f = vec4<f32>(p.factor);
  let x = vec4<f32>(f32(id.x));
${Array.from({ length: CHAINS }, (_, i) => `  var s${i} = vec4<f32>(${i}.5);`).join("\n")}
  for (var i = 0u; i < p.rounds; i++) {
${Array.from({ length: CHAINS }, (_, i) => `    s${i} = fma(s${i}, f, x);`).join("\n")}
  }
  let s = ${Array.from({ length: CHAINS }, (_, i) => `s${i}`).join(" + ")};
  y[id.x] = s.x + s.y + s.z + s.w;
}
`;

async function secondsOf(device: Device, call: () => void, timeMs: number): Promise<number> {
  const { wall, gpuMs } = await timeOf(device, call, timeMs);
  return (gpuMs || wall.minMs) / 1000; // as in timeCall
}

function multiplyAddCall(device: WebGpuDevice, y: Tensor): () => void {
  device.addKernel("bench-multiply-add", MULTIPLY_ADD);
  return () =>
    device.dispatch("bench-multiply-add/main", {
      bind: { y },
      params: { rounds: ROUNDS, factor: 0.5 },
      grid: y.size / 64,
    });
}

/** Measures both ceilings; about a second. */
export async function measureCeilings(device: Device, timeMs: number): Promise<Ceilings> {
  const hardware = device instanceof WebGpuDevice && device.profile.adapterClass !== "software";
  using x = device.zeros([hardware ? 2 ** 25 : 2 ** 22]);
  const copied = await secondsOf(device, () => device.ops.scale(x, { factor: 1 }).dispose(), timeMs);
  const copyGigabytesPerSecond = (8 * x.size) / copied / 1e9;
  if (device instanceof WebGpuDevice) {
    using y = device.empty([hardware ? 2 ** 20 : 2 ** 14]);
    const seconds = await secondsOf(device, multiplyAddCall(device, y), timeMs);
    const flops = 2 * 4 * CHAINS * ROUNDS * y.size;
    return {
      copyGigabytesPerSecond,
      multiplyAddGflops: flops / seconds / 1e9,
      multiplyAddBy: "a kernel of nothing else",
    };
  }
  const n = device.kind === "cpu" ? 64 : 512;
  using a = device.zeros([n, n]);
  const seconds = await secondsOf(device, () => device.ops.matmul(a, a).dispose(), timeMs);
  return {
    copyGigabytesPerSecond,
    multiplyAddGflops: (2 * n ** 3) / seconds / 1e9,
    multiplyAddBy: `its own matmul of ${n} x ${n}`,
  };
}
