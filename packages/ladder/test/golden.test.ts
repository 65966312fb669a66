// The golden cases beside the repository, on machines that have them; check.test.ts needs none.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import type { WeightDType } from "../src/base-storage.ts";
import { type CaseResult, checkCase } from "../src/check/check.ts";
import { findCases } from "../src/node/golden-folder.ts";

const GOLDEN = fileURLToPath(new URL("../../../../shared/golden", import.meta.url));
const DEVICES =
  process.env.SIDENET_DEVICE === "cpu" ? (["cpu", "wasm"] as const) : (["cpu", "wasm", "webgpu"] as const);
const RUNS = DEVICES.flatMap((device) => (["f32", "f16"] as const).map((dtype) => [device, dtype] as const));

/** The only reason to skip a case; anything else that is skipped is a mistake. */
const NOT_F16 = /no float16 tolerances/;

const found = existsSync(GOLDEN);
console.log(found ? `golden cases found: ${GOLDEN}` : "no golden cases beside the repository: not run");

async function runAll(name: "cpu" | "wasm" | "webgpu", dtype: WeightDType): Promise<CaseResult[]> {
  const { device } = await openDevice(name);
  try {
    const results: CaseResult[] = [];
    for (const location of await findCases(GOLDEN)) {
      results.push(await checkCase(location, { device, dtype }));
      expect(device.memory.liveCount, location.folder.name).toBe(0);
    }
    return results;
  } finally {
    device.dispose();
    releaseDawn();
  }
}

describe.runIf(found)("the golden cases", () => {
  it.each(RUNS)("pass on %s in %s", async (device, dtype) => {
    const results = await runAll(device, dtype);
    const failed = results.filter(({ status }) => status === "failed");
    expect(failed.map(({ name, reason }) => `${name}: ${reason}`)).toEqual([]);
    const unexplained = results.filter(
      ({ status, reason }) => status === "skipped" && !(dtype === "f16" && NOT_F16.test(reason ?? "")),
    );
    expect(unexplained.map(({ name, reason }) => `${name}: ${reason}`)).toEqual([]);
    expect(results.filter(({ status }) => status === "passed").length).toBeGreaterThan(0);
  });
});
