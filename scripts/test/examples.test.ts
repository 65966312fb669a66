// The programs under examples/ run as they are, in this process: whatever they leave behind fails the test too.
import { afterEach, expect, it, vi } from "vitest";

const gpu = process.env.SIDENET_DEVICE !== "cpu";

afterEach(() => void vi.restoreAllMocks());

/** What a program prints. */
async function printed(program: () => Promise<unknown>): Promise<string> {
  const lines: string[] = [];
  vi.spyOn(console, "log").mockImplementation((line: string) => void lines.push(line));
  await program();
  return lines.join("\n");
}

const numbers = (text: string, pattern: RegExp) =>
  [...text.matchAll(pattern)].map(([, found]) => Number(found));

it("train-a-ladder: the held-out loss falls by more than chance", async () => {
  const text = await printed(() => import("../../examples/train-a-ladder.mjs"));
  const [frozen] = numbers(text, /held-out loss: ([\d.]+)/g);
  const [trained] = numbers(text, /→ ([\d.]+)/g);
  expect(trained).toBeLessThan(frozen - 0.3);
});

it("custom-side-network: the loss falls, the tape holds the side network alone, and the plan was right", async () => {
  const text = await printed(() => import("../../examples/custom-side-network.mjs"));
  const losses = numbers(text, /loss ([\d.]+)/g);
  expect(losses.length).toBe(5);
  expect(losses.at(-1)).toBeLessThan(losses[0] / 10);
  // The backbone has no ops of its own on the tape: no attention, no embedding, and a head that is only passed through.
  const ops = [...text.matchAll(/^ {2}(\w+) +gradient of/gm)].map(([, op]) => op);
  expect(new Set(ops)).toEqual(new Set(["linear", "add", "silu", "rmsNorm", "reshape", "lmHeadLoss"]));
  const [, planned, measured] = /(\d+) bytes planned, (\d+) measured/.exec(text)!;
  expect(planned).toBe(measured);
  expect(text).toContain("Two households,▸ both alike"); // learned by heart
});

it.skipIf(!gpu)("custom-kernel: every variant is right, and timed", async () => {
  const text = await printed(() => import("../../examples/custom-kernel.mjs"));
  expect(numbers(text, /^(\d+) lanes: off by/gm)).toEqual([32, 64, 128]);
  for (const rate of numbers(text, /([\d.]+) GB\/s/g)) expect(rate).toBeGreaterThan(0);
  expect(text).not.toContain("NaN");
});
