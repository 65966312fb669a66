/** The golden operations by name, each as a user would compute it from the op table. */
import { AdamW, clipGlobalNorm } from "@sidenet/autograd";
import { concatAll, ParamStore, sliceAll, type Tensor } from "@sidenet/tensor";
import * as z from "zod";
import { gateFusion } from "../methods/side-network.ts";
import { ropeFrom } from "../model/config-rope.ts";
import { ropeValues } from "../model/rope-tables.ts";
import { malformed, SkipCase } from "./golden-case.ts";
import { define, type GoldenOp } from "./golden-op.ts";
import { quantizedOps } from "./golden-quantized.ts";

const none = z.looseObject({});
const ignoring = z.looseObject({ ignore_index: z.int() });

const matmul = define({
  params: z.looseObject({ variant: z.enum(["nn", "nt", "tn"]) }),
  run({ ops, inputs, params }) {
    const method = ({ nn: "matmul", nt: "matmulNT", tn: "matmulTN" } as const)[params.variant];
    return { y: ops[method](inputs.need("a"), inputs.need("b")) };
  },
});

const linear = define({
  params: none,
  run: ({ ops, inputs }) => ({ y: ops.linear(inputs.need("x"), inputs.need("w"), inputs.find("b")) }),
});

const rmsNorm = define({
  params: z.looseObject({ eps: z.number() }),
  run: ({ ops, inputs, params: { eps } }) => ({
    y: ops.rmsNorm(inputs.need("x"), inputs.find("w"), { eps }),
  }),
});

const rope = define({
  params: z.looseObject({ position_offset: z.int().default(0) }),
  run({ device, ops, inputs, params }) {
    const x = inputs.need("x");
    const [T, , c] = x.shape.slice(-3);
    const tables = ropeValues(ropeFrom(params, "params.json"), c, params.position_offset, T);
    const cos = device.tensor(tables.cos, [T, c / 2]);
    const sin = device.tensor(tables.sin, [T, c / 2]);
    return { y: ops.rope(x, cos, sin), cos, sin };
  },
});

const attention = define({
  params: z.looseObject({ query_offset: z.int().default(0), scale: z.number().nullish() }),
  run({ ops, inputs, params }) {
    const [q, k, v] = ["q", "k", "v"].map(inputs.need);
    const attrs = { queryOffset: params.query_offset, scale: params.scale ?? null };
    return { y: ops.attention(q, k, v, inputs.find("key_mask"), null, attrs) };
  },
});

const siluMul = define({
  params: none,
  run: ({ ops, inputs }) => ({ y: ops.siluMul(inputs.need("gate"), inputs.need("up")) }),
});

const embedding = define({
  params: none,
  run: ({ ops, inputs }) => ({ y: ops.embedding(inputs.need("ids"), inputs.need("table")) }),
});

const crossEntropy = define({
  params: ignoring,
  run: ({ ops, inputs, params }) => ({
    loss: ops.crossEntropy(inputs.need("logits"), inputs.need("targets"), {
      ignoreIndex: params.ignore_index,
    }),
  }),
});

const lmHeadCrossEntropy = define({
  params: ignoring,
  run: ({ ops, inputs, params }) => ({
    loss: ops.lmHeadLoss(inputs.need("h"), inputs.need("w"), inputs.need("targets"), {
      ignoreIndex: params.ignore_index,
    }),
  }),
});

/** All steps of g [steps, ...]: p after each, m and v after the last. */
const adamw = define({
  params: z.looseObject({
    lr: z.number(),
    betas: z.tuple([z.number(), z.number()]),
    eps: z.number(),
    weight_decay: z.number(),
  }),
  run({ device, inputs, params: { lr, betas, eps, weight_decay: weightDecay } }) {
    const { ops } = device;
    const copy = (t: Tensor) => ops.scale(t, { factor: 1 });
    const g = inputs.need("g");
    using store = new ParamStore(device, "adapter");
    const p = store.add("p", copy(inputs.need("p")));
    using optimizer = new AdamW(store, { betas, eps, weightDecay });
    const trail = Array.from({ length: g.shape[0] }, (_, start) => {
      const gradient = ops.reshape(ops.slice(g, { axis: 0, start, count: 1 }), { shape: p.shape });
      optimizer.step(new Map([[p, gradient]]), { lr });
      return copy(p);
    });
    const { tensors } = optimizer.exportState();
    return { p: trail, m: copy(tensors.get("m.p")!), v: copy(tensors.get("v.p")!) };
  },
});

const clip = define({
  params: z.looseObject({ count: z.int().positive(), max_norm: z.number() }),
  run({ device, inputs, params }) {
    const gradients = Array.from({ length: params.count }, (_, i) => inputs.need(`g${i}`));
    const { factor, norm } = clipGlobalNorm(new Map(gradients.map((g) => [g, g])), params.max_norm);
    const clipped = gradients.map((g, i) => [`clipped${i}`, device.ops.scaleBy(g, factor)] as const);
    return { norm, ...Object.fromEntries(clipped) };
  },
});

const gate = define({
  params: z.looseObject({ temperature: z.number().positive() }),
  alwaysF32: ["alpha"], // as a side network keeps its parameters
  run: ({ ops, inputs, params }) => {
    const [s, r, alpha] = ["s", "r", "alpha"].map(inputs.need);
    return { y: gateFusion(ops, s, r, alpha, params.temperature) };
  },
});

const reduce = define({
  params: z.looseObject({ kind: z.string(), axis: z.int().nullable() }),
  run({ ops, inputs, params: { kind, axis } }) {
    if (kind !== "sum" && kind !== "mean" && kind !== "max" && kind !== "min") {
      throw new SkipCase(`reduce ${kind} is not covered yet`);
    }
    const x = inputs.need("x");
    return { y: ops[kind](x, { axis }), ...(kind === "max" && { argmax: ops.argmax(x, { axis }) }) };
  },
});

const slice = define({
  params: z.looseObject({ start: z.array(z.int()), stop: z.array(z.int()) }),
  run({ ops, inputs, params: { start, stop } }) {
    const x = inputs.need("x");
    if (start.length !== x.shape.length || stop.length !== start.length) {
      throw malformed(`start and stop do not have the ${x.shape.length} axes of x`);
    }
    return { y: sliceAll(ops, x, start, stop) };
  },
});

const concat = define({
  params: z.looseObject({ count: z.int().positive(), axis: z.int() }),
  run({ ops, inputs, params: { count, axis } }) {
    const tensors = Array.from({ length: count }, (_, i) => inputs.need(`x${i}`));
    return { y: concatAll(ops, tensors, axis) };
  },
});

const transpose = define({
  params: z.looseObject({ permutation: z.array(z.int()) }),
  run: ({ ops, inputs, params: { permutation } }) => ({
    y: ops.transpose(inputs.need("x"), { permutation }),
  }),
});

const softmax = define({
  params: none,
  run: ({ ops, inputs }) => ({ y: ops.softmax(inputs.need("x"), inputs.find("mask")) }),
});

/** Golden operations, by the name in the field "op" of `params.json`. */
export const goldenOps: Readonly<Record<string, GoldenOp>> = {
  ...quantizedOps,
  adamw,
  attention,
  clip,
  concat,
  cross_entropy: crossEntropy,
  embedding,
  gate_fusion: gate,
  linear,
  lm_head_cross_entropy: lmHeadCrossEntropy,
  matmul,
  reduce,
  rms_norm: rmsNorm,
  rope,
  silu_mul: siluMul,
  slice,
  softmax,
  transpose,
};
