import { Tape } from "@sidenet/autograd";
import { type Device, isFloat, type Tensor } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import { type Comparison, exactError, relativeError } from "./compare.ts";
import {
  type CaseFolder,
  type CheckContext,
  type ExpectedTensors,
  malformed,
  notForFloat16,
  opTolerances,
  PRECISION,
  readCaseTensors,
  readExpected,
  readJson,
  SkipCase,
} from "./golden-case.ts";
import type { GoldenOp, Inputs, Outputs } from "./golden-op.ts";
import { goldenOps } from "./golden-ops.ts";
import { type HostTensor, readAndFree, upload } from "./host-tensor.ts";

const paramsSchema = z.looseObject({
  op: z.string(),
  exact: z.boolean().default(false),
  tolerance: opTolerances.default({}),
});

type HostTensors = ReadonlyMap<string, HostTensor>;

/** Checks an operation and its gradients: every tensor of `expected.safetensors` is computed and compared, and none may lack. */
export async function checkOp(folder: CaseFolder, context: CheckContext): Promise<Comparison[]> {
  const params = await readJson(folder, "params.json", paramsSchema);
  const op = Object.hasOwn(goldenOps, params.op) ? goldenOps[params.op] : undefined;
  if (!op) throw new SkipCase(`${params.op} is not covered yet`);
  const own = checked(op.params, params, (why) => malformed(`params.json: ${why}`));
  const tolerances = params.tolerance[PRECISION[context.dtype]];
  if (tolerances === undefined && context.dtype === "f16") throw notForFloat16();
  const inputs = await readCaseTensors(folder, "inputs.safetensors");
  const expected = await readExpected(folder);
  const results = await compute(op, own, inputs, expected, context);
  const comparisons = [...results].map(([tensor, result]) => {
    const { dtype, values } = expected.take(tensor, result);
    if (params.exact || !isFloat(dtype))
      return { tensor, error: exactError(result.values, values), tolerance: 0 };
    const tolerance = tolerances?.[tensor];
    if (tolerance === undefined) throw malformed(`params.json has no tolerance for "${tensor}"`);
    return { tensor, error: relativeError(result.values, values), tolerance };
  });
  expected.finish();
  return comparisons;
}

/** Every output of the op and, where the case has an upstream gradient, the gradient of each input that is not frozen. */
async function compute(
  op: GoldenOp,
  params: unknown,
  host: HostTensors,
  expected: ExpectedTensors,
  { device, dtype }: CheckContext,
): Promise<Map<string, HostTensor>> {
  const upstream = ["dy", "dloss"].some((name) => host.has(name));
  const tensors = device.scope(() => {
    const uploaded = new Map(
      [...host]
        .filter(([name]) => name !== "dy" && name !== "dloss")
        .map(([name, tensor]) => [
          name,
          upload(device, tensor, op.alwaysF32?.includes(name) ? "f32" : dtype),
        ]),
    );
    const isLeaf = (name: string) => expected.has(`d${name}`) || (upstream && !op.frozen?.includes(name));
    const leaves = [...uploaded].filter(([name, { dtype: d }]) => isFloat(d) && isLeaf(name));
    using tape = new Tape(device, leaves);
    const ops = leaves.length > 0 ? tape : device.ops;
    const outputs = op.run({ device, ops, inputs: inputsOf(uploaded), params });
    return { ...outputs, ...gradientsOf(device, tape, leaves, outputs, host) };
  });
  return readAndFree(tensors);
}

function inputsOf(uploaded: ReadonlyMap<string, Tensor>): Inputs {
  const find = (name: string) => uploaded.get(name) ?? null;
  const need = (name: string) => {
    const tensor = find(name);
    if (tensor) return tensor;
    throw malformed(`inputs.safetensors has no "${name}"`);
  };
  return { find, need };
}

/** Gradients by golden name: "dx" for the leaf "x". */
function gradientsOf(
  device: Device,
  tape: Tape,
  leaves: readonly [string, Tensor][],
  outputs: Outputs,
  host: HostTensors,
): Record<string, Tensor> {
  if (leaves.length === 0) return {};
  const [result, upstream] = "loss" in outputs ? ["loss", "dloss"] : ["y", "dy"];
  const y = outputs[result] as Tensor;
  const dy = host.get(upstream);
  if (!dy) throw malformed(`inputs.safetensors has no "${upstream}"`);
  const gradients = tape.backward(y, upload(device, { ...dy, shape: y.shape }, y.dtype));
  return Object.fromEntries(leaves.map(([name, leaf]) => [`d${name}`, gradients.get(leaf)!]));
}
