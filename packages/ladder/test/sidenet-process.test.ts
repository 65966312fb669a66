// The command as a process of its own: its streams, its exit code, and that it ends, Dawn or no Dawn.
import { spawn } from "node:child_process";
import { cp, mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build, defaultServerConditions } from "vite";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { matmulCase, writeFolder } from "./golden-cases.ts";

const gpu = process.env.SIDENET_DEVICE !== "cpu";
const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
// Within the repository, where the packages that are not bundled resolve.
const FOLDER = fileURLToPath(new URL("../../../node_modules/.cache/sidenet-process", import.meta.url));
const MAIN = join(FOLDER, "dist", "cli", "main.js");

/** Bundles the sources, so that no build has to stand and none is disturbed. */
beforeAll(async () => {
  await rm(FOLDER, { recursive: true, force: true });
  await mkdir(FOLDER, { recursive: true });
  await cp(join(PACKAGE, "package.json"), join(FOLDER, "package.json"));
  await writeFolder(join(FOLDER, "golden", "ops", "matmul", "good"), matmulCase());
  await writeFolder(join(FOLDER, "golden", "ops", "matmul", "wrong"), matmulCase(1));
  await build({
    configFile: false,
    logLevel: "error",
    ssr: { resolve: { conditions: ["source", ...defaultServerConditions] }, noExternal: [/^@sidenet\//] },
    build: {
      ssr: join(PACKAGE, "src", "cli", "main.ts"),
      outDir: join(FOLDER, "dist", "cli"),
      target: "node20",
      rollupOptions: { output: { entryFileNames: "main.js" } },
    },
  });
});
afterAll(() => rm(FOLDER, { recursive: true, force: true }));

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly out: string;
  readonly err: string;
}

function sidenet(args: readonly string[], closeEarly = false): Promise<Ended> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [MAIN, ...args], { timeout: 60_000 });
    let out = "";
    let err = "";
    child.stdout.on("data", (chunk) => {
      out += chunk;
      if (closeEarly) child.stdout.destroy();
    });
    child.stderr.on("data", (chunk) => {
      err += chunk;
    });
    child.on("close", (code, signal) => resolve({ code, signal, out, err }));
  });
}

describe("the sidenet process", () => {
  it.each(gpu ? ["cpu", "webgpu"] : ["cpu"])(
    "checks on %s, prints one JSON object, and ends with 1",
    async (device) => {
      const { code, signal, out } = await sidenet([
        "check",
        join(FOLDER, "golden"),
        "--device",
        device,
        "--json",
      ]);
      expect({ code, signal }).toEqual({ code: 1, signal: null });
      expect(out.split("\n").length).toBe(2);
      expect(JSON.parse(out)).toMatchObject({ passed: 1, failed: 1, skipped: 0, device });
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

  it("takes a reader that leaves early for the end, not for an error", async () => {
    const { err } = await sidenet(["check", join(FOLDER, "golden"), "--device", "cpu"], true);
    expect(err).not.toMatch(/EPIPE|bug/);
  });
});
