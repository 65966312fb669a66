import {
  CpuDevice,
  compareOutcomes,
  type Device,
  type OpCase,
  type OpName,
  runCase,
  TestRandom,
} from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { afterAll, beforeAll, expect, it } from "vitest";

let device: Device;
const reference = new CpuDevice({ precision: "f64" });
beforeAll(async () => {
  device = await openNodeWasm({ poison: true });
});
afterAll(() => device?.dispose());

const pick = new TestRandom(5);
const f16 = (...shape: number[]) => {
  const values = pick.normals(shape.reduce((a, b) => a * b, 1));
  return {
    name: "",
    values: Float64Array.from(values, (x) => Math.round(x * 64) / 64),
    shape,
    dtype: "f16" as const,
  };
};
const floats = (values: Float64Array, ...shape: number[]) => ({
  name: "",
  values: Float64Array.from(values, Math.fround),
  shape,
  dtype: "f32" as const,
});

const mask = (...shape: number[]) => ({
  name: "",
  values: pick.ints(
    shape.reduce((a, b) => a * b, 1),
    0,
    1,
  ),
  shape,
  dtype: "u8" as const,
});

/** 400 rows of 700: three windows; angles of 130 positions begin anew within one. */
const CASES: [OpName, () => OpCase["inputs"], OpCase["attrs"]][] = [
  ["rmsNorm", () => [f16(400, 700), f16(700)], { eps: 1e-5 }],
  [
    "rmsNormBackwardX",
    () => [f16(400, 700), f16(400, 700), floats(new Float64Array(400).fill(1), 400), null],
    {},
  ],
  [
    "rmsNormBackwardGain",
    () => [f16(400, 700), f16(400, 700), floats(new Float64Array(400).fill(1), 400)],
    {},
  ],
  ["layerNorm", () => [f16(400, 700), f16(700), f16(700)], { eps: 1e-5 }],
  ["softmax", () => [f16(400, 700), null], {}],
  // The rows of the mask begin anew within a window.
  ["softmax", () => [f16(4, 100, 700), mask(100, 700)], {}],
  ["add", () => [f16(400, 700), f16(700)], {}],
  ["less", () => [f16(400, 700), f16(400, 1)], {}],
  ["where", () => [mask(400, 700), f16(400, 700), null], {}],
  ["dropout", () => [f16(400, 700)], { rate: 0.3, seed: 5, stream: 1, offset: 8 }],
  ["gelu", () => [f16(400, 700)], { form: "erf" }],
  ["linear", () => [f16(3000, 400), f16(30, 400), f16(30)], {}],
  ["matmul", () => [f16(3, 500, 700), f16(3, 700, 20)], {}],
  ["sumSquares", () => [floats(new Float64Array(1)), f16(400, 700)], {}],
  [
    "sgd",
    () => [floats(pick.normals(700), 700), floats(pick.normals(700), 700), f16(700), null],
    { lr: 0.01, momentum: 0.9, weightDecay: 0.1, nesterov: true },
  ],
  ["softmaxBackward", () => [f16(400, 700), f16(400, 700)], {}],
  [
    "rope",
    () => [f16(3, 130, 7, 100), floats(pick.normals(6500), 130, 50), floats(pick.normals(6500), 130, 50)],
    { inverse: false },
  ],
  [
    "crossEntropy",
    () => [f16(400, 700), { name: "", values: pick.ints(400, 0, 699), shape: [400], dtype: "i32" }],
    { ignoreIndex: -100, labelSmoothing: 0.1 },
  ],
];

it.each(CASES)("%s takes f16 in several windows", async (name, inputs, attrs) => {
  const drawn: OpCase = { inputs: inputs(), attrs };
  const got = await runCase(device, name, drawn);
  const problem = compareOutcomes(name, drawn, got, await runCase(reference, name, drawn));
  expect(problem).toBeNull();
  expect((device as unknown as { statistics(): { references: number } }).statistics().references).toBe(0);
  expect(device.memory.liveCount).toBe(0);
});
