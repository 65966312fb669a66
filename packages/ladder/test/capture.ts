import { CATEGORIES } from "@sidenet/tensor";
import { expect } from "vitest";
import { runSidenet } from "../src/cli/program.ts";

/** What an invocation of `sidenet` wrote, and its exit code. */
export interface Captured {
  readonly exitCode: number;
  readonly out: string;
  readonly err: string;
  /** The object that `--json` promises: the last line of standard output, which has no other. Throws if it is not so. */
  readonly json: () => Record<string, unknown>;
}

/** Runs `sidenet` in this process. */
export const sidenet = (...args: string[]): Promise<Captured> => sidenetWith([], ...args);

/** The same with lines on standard input. */
export async function sidenetWith(lines: readonly string[], ...args: string[]): Promise<Captured> {
  let out = "";
  let err = "";
  const exitCode = await runSidenet(args, {
    out: (text) => {
      out += text;
    },
    err: (text) => {
      err += text;
    },
    interactive: false,
    lines: async function* () {
      yield* lines;
    },
  });
  const json = () => {
    const lines = out.split("\n");
    if (lines.length !== 2 || lines[1] !== "") throw new Error(`not one line of JSON: ${out}`);
    return JSON.parse(lines[0]) as Record<string, unknown>;
  };
  return { exitCode, out, err, json };
}

/** Fails unless an object of `--json` has the peak of a device that held something, and its parts. */
export function expectPeak({ peak_bytes, peak_bytes_by_category }: Record<string, unknown>): void {
  const parts = peak_bytes_by_category as Record<string, number>;
  expect(Object.keys(parts)).toEqual([...CATEGORIES]);
  expect(peak_bytes).toBeGreaterThan(0);
  expect(Object.values(parts).reduce((a, b) => a + b, 0)).toBe(peak_bytes);
}
