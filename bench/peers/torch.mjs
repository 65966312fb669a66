// The computations of bench/peers.mjs with PyTorch, in a Python process that measures its own times.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { SetupError } from "../../scripts/lib/steps.mjs";
import { ADAMW, initialValues, MODEL, parameterShapes, tokens } from "./llama.mjs";

/** Throws when `python` does not run or has no PyTorch. */
export async function openTorch(python, threads) {
  const script = fileURLToPath(new URL("./torch-peer.py", import.meta.url));
  const child = spawn(python, [script, String(threads)], { stdio: ["pipe", "pipe", "inherit"] });
  const failed = new Promise((_, reject) => {
    child.once("error", reject);
    child.once("exit", (code) =>
      reject(
        new SetupError("PyTorch did not run.", `${python} ended with ${code}: is PyTorch installed there?`),
      ),
    );
  });
  failed.catch(() => {}); // no unhandled rejection when the process ends
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const read = async () => {
    const { value, done } = await Promise.race([lines.next(), failed]);
    return done ? failed : JSON.parse(value);
  };
  const ask = (request) => {
    child.stdin.write(`${JSON.stringify(request)}\n`);
    return read();
  };
  const { label } = await read();
  const folder = mkdtempSync(join(tmpdir(), "sidenet-peers-"));
  const make = async (name, request) => {
    await ask({ make: name, ...request });
    return () => ask({});
  };
  const withShapes =
    (name) =>
    (...operands) =>
      make(name, { shapes: operands.map(({ shape }) => shape) });
  return {
    name: "PyTorch",
    isBeside: true, // a native library: its rates are shown, but it does not count as a peer
    label,
    matmul: (a, b, transposed) => make("matmul", { shapes: [a.shape, b.shape], transposed }),
    attention: withShapes("attention"),
    rmsNorm: withShapes("rmsNorm"),
    softmax: withShapes("softmax"),
    siluMul: withShapes("siluMul"),
    transpose: withShapes("transpose"),
    add: withShapes("add"),
    crossEntropy: (logits, labels) => make("crossEntropy", { shapes: [logits.shape], labels: [...labels] }),
    manySmall: (_operand, calls) => make("smallOp", { calls }),
    smallOp: (calls) => make("smallOp", { calls }),
    trainingStep() {
      const path = join(folder, "parameters.f32");
      const shapes = parameterShapes();
      const values = Object.values(shapes).map((shape, i) => initialValues(shape, i));
      writeFileSync(path, Buffer.concat(values.map((each) => Buffer.from(each.buffer))));
      const { inputs, targets } = tokens();
      const batch = { inputs: [...inputs], targets: [...targets] };
      return make("trainingStep", { path, shapes, model: MODEL, adamw: ADAMW, ...batch });
    },
    close() {
      child.stdin.end();
      rmSync(folder, { recursive: true });
    },
  };
}
