// The golden cases beside the repository, on machines that have them; check.test.ts needs none.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Device } from "@sidenet/tensor";
import { openDevice, openNodeWasm, releaseDawn } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import { type CaseResult, checkCase } from "../src/check/check.ts";
import type { WeightDType } from "../src/model/base-storage.ts";
import { findCases } from "../src/node/golden-folder.ts";

const GOLDEN = fileURLToPath(new URL("../../../../shared/golden", import.meta.url));
const gpu = process.env.SIDENET_DEVICE !== "cpu";

const named = (name: "cpu" | "wasm" | "webgpu") => async () => (await openDevice(name)).device;
const DEVICES: [string, () => Promise<Device>][] = [
  ["cpu", named("cpu")],
  ["wasm", named("wasm")],
  ["wasm on 1 thread", () => openNodeWasm({ threads: 1 })],
  ["wasm on 4 threads without fused multiply-add", () => openNodeWasm({ threads: 4, relaxedSimd: false })],
  ...(gpu ? [["webgpu", named("webgpu")] as [string, () => Promise<Device>]] : []),
];
const RUNS = DEVICES.flatMap(([name, open]) =>
  (["f32", "f16"] as const).map((dtype) => [name, dtype, open] as const),
);

/** The only reason to skip a case; anything else that is skipped is a mistake. */
const NOT_F16 = /no float16 tolerances/;

const found = existsSync(GOLDEN);
console.log(found ? `golden cases found: ${GOLDEN}` : "no golden cases beside the repository: not run");

async function runAll(open: () => Promise<Device>, dtype: WeightDType): Promise<CaseResult[]> {
  const device = await open();
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
  it.each(RUNS)("pass on %s in %s", async (_, dtype, open) => {
    const results = await runAll(open, dtype);
    const failed = results.filter(({ status }) => status === "failed");
    expect(failed.map(({ name, reason }) => `${name}: ${reason}`)).toEqual([]);
    const unexplained = results.filter(
      ({ status, reason }) => status === "skipped" && !(dtype === "f16" && NOT_F16.test(reason ?? "")),
    );
    expect(unexplained.map(({ name, reason }) => `${name}: ${reason}`)).toEqual([]);
    expect(results.filter(({ status }) => status === "passed").length).toBeGreaterThan(0);
  });
});
