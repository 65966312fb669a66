// Operations that ops are counted with, against those of the ops that they stand for (methods.md, 5: a multiply-add is 2).
import { MetaDevice, type Ops, type Tensor, TestRandom } from "@sidenet/tensor";
import { expect, it } from "vitest";

const device = new MetaDevice();
const counted = (run: (ops: Ops) => unknown): number => {
  const before = device.flops;
  device.scope(() => {
    run(device.ops);
  });
  return device.flops - before;
};
const tensor = (...shape: number[]): Tensor => device.empty(shape);

it("a loss over the head costs the logits and their loss, and dw these twice", () => {
  const pick = new TestRandom(1);
  for (let run = 0; run < 20; run++) {
    const [N, C, V] = [pick.int(1, 90), 4 * pick.int(1, 20), pick.int(2, 300)];
    device.scope(() => {
      const [h, w] = [tensor(N, C), tensor(V, C)];
      const targets = device.empty([N], { dtype: "i32" });
      const logits = counted((ops) => ops.matmulNT(h, w));
      const product = counted((ops) => ops.matmul(tensor(C, N), tensor(N, V)));
      const losses = counted((ops) => ops.crossEntropy(tensor(N, V), targets));
      expect([logits, product]).toEqual([2 * N * C * V, 2 * N * C * V]);
      expect(counted((ops) => ops.lmHeadLoss(h, w, targets))).toBe(logits + losses);
      expect(counted((ops) => ops.lmHeadLossBackwardW(tensor(), h, w, targets))).toBe(
        logits + product + 2 * losses,
      );
    });
  }
});

it("linear costs what matmul does", () => {
  const pick = new TestRandom(2);
  for (let run = 0; run < 20; run++) {
    const [N, I, O] = [pick.int(1, 90), 64 * pick.int(1, 4), 64 * pick.int(1, 4)];
    device.scope(() => {
      const x = tensor(N, I);
      expect(counted((ops) => ops.linear(x, tensor(O, I)))).toBe(
        counted((ops) => ops.matmulNT(x, tensor(O, I))),
      );
    });
  }
});

it("attention costs q·kᵀ and p·v over the pairs that are visible, and its gradients three and four such products", () => {
  const pick = new TestRandom(3);
  for (let run = 0; run < 20; run++) {
    const [B, T, D, G] = [pick.int(1, 3), pick.int(1, 20), 4 * pick.int(1, 9), pick.int(1, 3)];
    const [S, H] = [T + pick.int(0, 9), G * pick.int(1, 3)];
    const queryOffset = pick.oneOf([0, S - T]);
    let pairs = 0;
    for (let t = 0; t < T; t++) for (let s = 0; s < S; s++) if (s <= t + queryOffset) pairs++;
    const product = 2 * B * H * D * pairs;
    device.scope(() => {
      const [q, k, v] = [tensor(B, T, H, D), tensor(B, S, G, D), tensor(B, S, G, D)];
      const lse = tensor(B, T, H, 2);
      const attrs = { queryOffset };
      expect(counted((ops) => ops.attention(q, k, v, null, null, attrs))).toBe(2 * product);
      expect(counted((ops) => ops.attentionBackwardQ(q, q, k, v, q, lse, null, null, attrs))).toBe(
        3 * product,
      );
      expect(counted((ops) => ops.attentionBackwardKV(q, q, k, v, q, lse, null, null, attrs))).toBe(
        4 * product,
      );
    });
  }
});
