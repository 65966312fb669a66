// The rows of bench/regress.mjs: the ops on which a training step and generation spend their time.

const [T, d, f, heads, keyHeads, c, V] = [256, 576, 1536, 9, 3, 64, 4096];

/** Functions that make operands. `library` is the package @sidenet/tensor of one checkout. */
function operandMakers(device, { Random, nf4Table, sizeOf, stateMaps, NF4_BLOCKS }) {
  let stream = 0;
  const normals = (...shape) => device.tensor(new Random(1, stream++).normals(sizeOf(shape)), shape);
  const constant = (value, ...shape) => device.tensor(new Float32Array(sizeOf(shape)).fill(value), shape);
  const integers = (dtype, below, ...shape) => {
    const values = Array.from({ length: sizeOf(shape) }, (_, i) => (i * 7919) % below);
    return device.tensor(values, shape, { dtype });
  };
  const nf4 = (out, inner) => {
    const blocks = (out * inner) / NF4_BLOCKS.block;
    return [
      integers("u8", 256, (out * inner) / 2),
      device.tensor(nf4Table({ double: true }), [273]),
      constant(0.01, Math.ceil(blocks / NF4_BLOCKS.nestedBlock)),
      integers("u8", 256, blocks),
    ];
  };
  return { normals, constant, integers, nf4, maps: () => device.tensor(stateMaps(), [512]) };
}

/** By row, a function that makes its operands (in the shapes of SmolLM2-135M) and returns the call to time. */
export function rowsOf(device, library) {
  const { normals, constant, integers, nf4, maps } = operandMakers(device, library);
  const row = (op, operands, attrs = {}, residuals = []) => {
    return () => {
      for (const tensor of Object.values(device.run(op, operands, attrs, residuals))) tensor.dispose();
    };
  };
  const query = (h = heads, size = c) => normals(1, T, h, size);
  const key = (g = keyHeads, size = c) => normals(1, T, g, size);
  const lse = (h = heads) => constant(4, 1, T, h, 2);
  const [small, other] = [normals(64), normals(64)];
  return {
    linear: () => row("linear", [normals(T, d), normals(f, d), null]),
    matmul: () => row("matmul", [normals(T, f), normals(f, d)]),
    matmulTN: () => row("matmulTN", [normals(T, d), normals(T, d)]),
    nf4Linear: () => row("nf4Linear", [normals(T, d), ...nf4(f, d), null], { out: f }),
    attention: () => row("attention", [query(), key(), key(), null], {}, ["lse"]),
    attentionBackwardKV: () =>
      row("attentionBackwardKV", [query(), query(), key(), key(), query(), lse(), null]),
    "attention of 128": () => row("attention", [query(4, 128), key(1, 128), key(1, 128), null], {}, ["lse"]),
    "attentionBackwardKV of 128": () =>
      row("attentionBackwardKV", [
        ...[query(4, 128), query(4, 128), key(1, 128), key(1, 128), query(4, 128)],
        ...[lse(4), null],
      ]),
    lmHeadLoss: () =>
      row("lmHeadLoss", [normals(T / 2, d), normals(V, d), integers("i32", V, T / 2)], {}, ["dh"]),
    rmsNorm: () => row("rmsNorm", [normals(16 * T, d), normals(d)]),
    softmax: () => row("softmax", [normals(heads * T, T), null]),
    siluMul: () => row("siluMul", [normals(T, f), normals(T, f)]),
    rope: () => row("rope", [query(), normals(T, c / 2), normals(T, c / 2)]),
    add: () => row("add", [normals(2 * T, d), normals(2 * T, d)]),
    transpose: () => row("transpose", [normals(2 * T, d)], { permutation: [1, 0] }),
    adamw: () => row("adamw", [normals(T, d), constant(0.1, T, d), constant(0.1, T, d), normals(T, d), null]),
    adamw8: () => {
      const [n, blocks] = [64 * 256, 64];
      const codes = () => integers("u8", 256, n);
      const absmax = () => constant(0.01, blocks);
      return row("adamw8", [normals(n), codes(), codes(), absmax(), absmax(), maps(), normals(n), null]);
    },
    "200 small adds": () => {
      const add = row("add", [small, other]);
      return () => {
        for (let i = 0; i < 200; i++) add();
      };
    },
  };
}
