import { Tape } from "@sidenet/autograd";
import { type Device, isFloat, type Tensor } from "@sidenet/tensor";
import { z } from "zod";
import { type Comparison, exactError, relativeError } from "./compare.ts";
import {
  type CaseFolder,
  type CheckContext,
  malformed,
  opTolerances,
  PRECISION,
  readCaseTensors,
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

type Params = z.infer<typeof paramsSchema>;
type HostTensors = ReadonlyMap<string, HostTensor>;

/** Checks an operation and its gradients: every tensor of `expected.safetensors` is computed and compared. */
export async function checkOp(folder: CaseFolder, context: CheckContext): Promise<Comparison[]> {
  const params = await readJson(folder, "params.json", paramsSchema);
  const op = Object.hasOwn(goldenOps, params.op) ? goldenOps[params.op] : undefined;
  if (!op) throw new SkipCase(`${params.op} is not covered yet`);
  const own = op.params.safeParse(params);
  if (!own.success) throw malformed(`params.json: ${z.prettifyError(own.error).replaceAll("\n", " ")}`);
  const tolerances = tolerancesOf(params, context);
  const inputs = await readCaseTensors(folder, "inputs.safetensors");
  const expected = await readCaseTensors(folder, "expected.safetensors");
  if (expected.size === 0) throw malformed("expected.safetensors is empty");
  const results = await compute(op, own.data, inputs, expected, context);
  return [...expected].map(([tensor, { dtype, values }]) => {
    const out = results.get(tensor);
    if (!out) throw new SkipCase(`it expects "${tensor}", which is not covered yet`);
    if (params.exact || !isFloat(dtype)) return { tensor, error: exactError(out, values), tolerance: 0 };
    const tolerance = tolerances[tensor];
    if (tolerance === undefined) throw malformed(`params.json has no tolerance for "${tensor}"`);
    return { tensor, error: relativeError(out, values), tolerance };
  });
}

function tolerancesOf(params: Params, { dtype }: CheckContext): Readonly<Record<string, number>> {
  const tolerances = params.tolerance[PRECISION[dtype]];
  if (tolerances === undefined && dtype === "f16") {
    throw new SkipCase("it has no float16 tolerances: not meant for float16");
  }
  return tolerances ?? {};
}

/** Every output of the op and, where the case expects one, the gradient of each input. */
async function compute(
  op: GoldenOp,
  params: unknown,
  host: HostTensors,
  expected: HostTensors,
  { device, dtype }: CheckContext,
): Promise<Map<string, ArrayLike<number>>> {
  const tensors = device.scope(() => {
    const uploaded = new Map(
      [...host]
        .filter(([name]) => name !== "dy" && name !== "dloss")
        .map(([name, tensor]) => [
          name,
          upload(device, tensor, op.alwaysF32?.includes(name) ? "f32" : dtype),
        ]),
    );
    const leaves = [...uploaded].filter(([name, { dtype: d }]) => isFloat(d) && expected.has(`d${name}`));
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
