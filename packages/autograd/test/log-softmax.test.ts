import { logSoftmax, TestRandom } from "@sidenet/tensor";
import { expect, it } from "vitest";
import { checkpoint, gradcheck } from "../src/index.ts";

it("logSoftmax has right gradients, on a tape and in a checkpoint, though its shift is not recorded", async () => {
  for (let seed = 1; seed <= 10; seed++) {
    const random = new TestRandom(seed);
    const shape = [random.int(1, 4), random.int(2, 9)];
    const inputs = [{ shape, values: random.normals(shape[0] * shape[1]) }];
    const { worst } = await gradcheck((ops, x) => logSoftmax(ops, x), inputs);
    expect(worst).toBeLessThan(1e-7);
    await gradcheck((ops, x) => checkpoint(ops, logSoftmax, [x]), inputs);
  }
});
