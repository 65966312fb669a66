// The command as a process of its own: its streams, its exit code, and that it ends, Dawn or no Dawn.
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type BundledCommand, bundleCommand } from "./bundled-command.ts";
import { matmulCase, writeFolder } from "./golden-cases.ts";

const gpu = process.env.SIDENET_DEVICE !== "cpu";
let command: BundledCommand;
let golden = "";

beforeAll(async () => {
  command = await bundleCommand("sidenet-process");
  golden = join(command.folder, "golden");
  await writeFolder(join(golden, "ops", "matmul", "good"), matmulCase());
  await writeFolder(join(golden, "ops", "matmul", "wrong"), matmulCase(1));
});
afterAll(() => command.remove());

const sidenet = (args: readonly string[]) => command.start(args).ended;

describe("the sidenet process", () => {
  it.each(gpu ? ["cpu", "webgpu"] : ["cpu"])(
    "checks on %s, prints one JSON object, and ends with 1",
    async (device) => {
      const { code, signal, out } = await sidenet(["check", golden, "--device", device, "--json"]);
      expect({ code, signal }).toEqual({ code: 1, signal: null });
      expect(out.split("\n").length).toBe(2);
      expect(JSON.parse(out)).toMatchObject({
        passed: 1,
        failed: 1,
        skipped: 0,
        device: expect.stringMatching(`^${device}: .`),
      });
    },
  );

  it("ends with 0 after doctor, and with 2 after a typing mistake", async () => {
    const doctor = await sidenet(["doctor", ...(gpu ? [] : ["--device", "cpu"])]);
    expect({ code: doctor.code, signal: doctor.signal }).toEqual({ code: 0, signal: null });
    expect(doctor.out).toMatch(/^computed +OK/m);
    const mistake = await sidenet(["docter"]);
    expect(mistake).toMatchObject({ code: 2, signal: null, out: "" });
    expect(mistake.err).toContain("Did you mean doctor?");
  });

  it("tells toggles of Dawn that are no names, and not that a driver is missing", async () => {
    process.env.SIDENET_DAWN_FEATURES = "a b";
    const doctor = await sidenet(["doctor"]).finally(() => delete process.env.SIDENET_DAWN_FEATURES);
    expect(doctor).toMatchObject({ code: 1, out: "" });
    expect(doctor.err).toContain('[T-DAWN-FEATURES] SIDENET_DAWN_FEATURES is "a b"');
  });

  it("tells a Dawn that does not load, and not to install a driver", async () => {
    const dawn = join(command.folder, "node_modules", "webgpu");
    await mkdir(dawn, { recursive: true });
    await writeFile(join(dawn, "package.json"), '{ "type": "module", "main": "index.js" }');
    await writeFile(join(dawn, "index.js"), 'throw new Error("invalid ELF header");');
    const [doctor, check] = await Promise.all([
      sidenet(["doctor"]),
      sidenet(["check", golden, "--device", "webgpu"]),
    ]).finally(() => rm(dawn, { recursive: true }));
    expect(doctor.code, doctor.err).toBe(0); // WebAssembly computes
    expect(doctor.out).toMatch(/^adapter +none\. \[T-NO-DAWN\] Dawn .* invalid ELF header.*npm ci/m);
    expect(doctor.out).not.toMatch(/driver/);
    expect(check).toMatchObject({ code: 1, out: "" });
    expect(check.err).toContain("[T-NO-DAWN]");
  });

  it("takes a reader that leaves early for the end, not for an error", async () => {
    const { child, ended } = command.start(["check", golden, "--device", "cpu"]);
    child.stdout?.once("data", () => child.stdout?.destroy());
    expect((await ended).err).not.toMatch(/EPIPE|bug/);
  });
});
