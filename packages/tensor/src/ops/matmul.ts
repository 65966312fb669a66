import { EPS, type HostArray } from "../dtype.ts";
import { defineOp } from "../op.ts";
import type { Dims } from "../signature.ts";
import type { TestRandom } from "../test-random.ts";
import type { MatmulForm } from "./matmul-blocks.ts";
import { runMatmul } from "./matmul-plan.ts";

/** The reference of y[P,M,N] = Σ_k a·b with the strides of a form, in double. */
export function referenceMatmul(
  form: MatmulForm,
  io: { a: HostArray; b: HostArray; y: HostArray },
  { P, M, K, N }: Dims,
): void {
  const { a, b, y } = io;
  const [aRow, aK] = form === "tn" ? [1, M] : [K, 1];
  const [bCol, bK] = form === "nt" ? [K, 1] : [1, N];
  for (let p = 0; p < P; p++) {
    for (let m = 0; m < M; m++) {
      for (let n = 0; n < N; n++) {
        let sum = 0;
        for (let i = 0; i < K; i++)
          sum += a[p * M * K + m * aRow + i * aK] * b[p * N * K + n * bCol + i * bK];
        y[(p * M + m) * N + n] = sum;
      }
    }
  }
}

/** The reference of y = x · wᵀ + bias. */
export function referenceLinear(
  { x, w, bias, y }: { x: HostArray; w: HostArray; bias: HostArray | null; y: HostArray },
  { N, I, O }: Dims,
): void {
  referenceMatmul("nt", { a: x, b: w, y }, { P: 1, M: N, K: I, N: O });
  if (bias) for (let i = 0; i < y.length; i++) y[i] += bias[i % O];
}

// A sum of K products of normal numbers grows as √K; its f32 error is at most K · eps, in practice √K · eps.
const closeProduct = ({ K }: Dims) => ({ rel: (8 + K) * EPS, abs: 1e-6 });

/**
 * Draws M, K, N around the tile sizes (4, 8, 16, 32, 64), often multiples of 4, which have kernels of their own: several tiles, or few
 * tiles and a K that is long enough for split-K.
 */
function drawExtents(pick: TestRandom): number[] {
  const four = pick.oneOf([4, 4, 1]);
  const max = pick.chance(0.75) ? [70, 70, 140] : [24, 700, 24];
  return max.map((extent) => four * pick.int(0, Math.floor(extent / four)));
}

function drawProduct(pick: TestRandom) {
  const [M, K, N] = drawExtents(pick);
  return { dims: { P: pick.shape(4, 2), M, K, N } };
}

type ProductSig = `a[P..,${string}] b[P..,${string}] -> y[P..,M,N]`;

/** The row of one form of matmul. */
const product = (name: string, doc: string, sig: ProductSig, form: MatmulForm) =>
  defineOp<ProductSig, object>({
    name,
    doc: `${doc}, batched over leading axes`,
    sig,
    reference: (io, dims) => referenceMatmul(form, io, dims),
    kernel: (k, io, { P, M, K, N }) => runMatmul(k, form, io, { P, M, K, N }),
    draw: drawProduct,
    close: closeProduct,
    flops: ({ P, M, K, N }) => 2 * P * M * K * N,
  });

export const matmul = product("matmul", "y = a · b", "a[P..,M,K] b[P..,K,N] -> y[P..,M,N]", "nn");
export const matmulNT = product("matmulNT", "y = a · bᵀ", "a[P..,M,K] b[P..,N,K] -> y[P..,M,N]", "nt");
export const matmulTN = product("matmulTN", "y = aᵀ · b", "a[P..,K,M] b[P..,K,N] -> y[P..,M,N]", "tn");

export const linear = defineOp({
  name: "linear",
  doc: "y = x · wᵀ + bias, w stored [out, in] as in checkpoints",
  sig: "x[N..,I] w[O,I] bias?[O] -> y[N..,O]",
  reference: referenceLinear,
  kernel: (k, { x, w, bias, y }, { N, I, O }) =>
    runMatmul(k, "nt", { a: x, b: w, y, bias }, { P: 1, M: N, K: I, N: O }),
  draw: (pick) => {
    const [N, I, O] = drawExtents(pick);
    return {
      dims: { N: pick.shape(N, 2), I, O },
      omit: pick.chance(0.5) ? ["bias"] : [],
    };
  },
  close: ({ I }) => closeProduct({ K: I }),
  flops: ({ N, I, O }) => 2 * N * I * O,
});
