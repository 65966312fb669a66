import { SidenetError } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { hubOptions, progressBar } from "../src/cli/download-progress.ts";
import { installAdvice, parseOsRelease } from "../src/cli/install-advice.ts";
import { packageVersion } from "../src/cli/program.ts";
import { Session } from "../src/cli/session.ts";
import { formatTable } from "../src/cli/table.ts";
import { Report } from "../src/cli/terminal.ts";
import { sidenet } from "./capture.ts";

const gpu = process.env.SIDENET_DEVICE !== "cpu";

/** A terminal that remembers. */
function recorder(interactive = false) {
  const text = { out: "", err: "" };
  const terminal = {
    out: (s: string) => {
      text.out += s;
    },
    err: (s: string) => {
      text.err += s;
    },
    interactive,
  };
  return { text, terminal };
}

describe("sidenet", () => {
  it("shows its commands, its version, and an example for each command", async () => {
    const help = await sidenet("--help");
    expect(help.exitCode).toBe(0);
    const commands = [...help.out.matchAll(/^ {2}(\w+) (?:\[options\]|<)/gm)]
      .map(([, name]) => name)
      .filter((name) => name !== "completions"); // a script for a shell, with no result of its own
    expect(commands).toEqual(expect.arrayContaining(["check", "doctor"]));
    const computes = (command: string) => !["report", "watch"].includes(command);
    for (const command of commands) {
      const { out, exitCode } = await sidenet(command, "--help");
      expect(out, command).toMatch(/Examples?:\n +\$ npx sidenet /);
      expect(out, command).toContain("--json");
      expect(out.includes("--device <name>"), command).toBe(computes(command));
      expect(out, command).toContain("--quiet");
      expect(exitCode).toBe(0);
    }
    expect((await sidenet("train", "--help")).out).toContain("--detect-anomaly");
    expect((await sidenet("completions", "--help")).out).toMatch(/Example:\n +\$ .*completions bash/);
    expect(await sidenet("--version")).toMatchObject({ exitCode: 0, out: `${packageVersion()}\n` });
  });

  it("tells typing mistakes apart from failures: exit code 2, and an error object with --json", async () => {
    const mistakes = [
      [],
      ["chekc"],
      ["check"],
      ["check", "folder", "--device", "tpu"],
      ["check", "folder", "--device", "meta"],
      ["check", "folder", "--dtype", "f64"],
      ["check", "folder", "--unknown"],
      ["doctor", "--device"],
      ["doctor", "surplus"],
      ["generate", "--model", "m", "--prompt", "p", "--temperature", "-1"],
      ["generate", "--model", "m", "--prompt", "p", "--top-k", "1.5"],
      ["generate", "--model", "m", "--prompt", "p", "--top-p", "0"],
      ["generate", "--model", "m", "--prompt", "p", "--min-p", "1.1"],
      ["generate", "--model", "m", "--prompt", "p", "--repetition-penalty", "none"],
      ["generate", "--model", "m", "--prompt", "p", "--seed", "4294967296"],
      ["train", "--model", "m", "--data", "d", "--output", "o", "--seed", "4294967296"],
    ];
    for (const args of mistakes) {
      const plain = await sidenet(...args);
      expect(plain, args.join(" ")).toMatchObject({ exitCode: 2, out: "" });
      expect(plain.err).toMatch(/--help|Usage/);
      if (args.length === 0) continue;
      const json = await sidenet(...args, "--json");
      expect(json.exitCode).toBe(2);
      expect(json.json(), args.join(" ")).toMatchObject({ error: { code: "C-USAGE" } });
    }
  });

  it("prints an error of the library with its code, and exits 1", async () => {
    const { exitCode, out, err } = await sidenet("check", "no-such-folder", "--device", "cpu");
    expect({ exitCode, out }).toEqual({ exitCode: 1, out: "" });
    expect(err).toBe("[L-FILE-MISSING] no-such-folder: there is no such file or folder. Check the path.\n");
  });
});

describe("a session", () => {
  it("shows the stack of an unexpected error, and says that it is a bug", () => {
    const { text, terminal } = recorder();
    const session = new Session(terminal, true);
    session.fail(new TypeError("x is undefined"));
    expect(session.exitCode).toBe(1);
    expect(text.err).toMatch(/TypeError: x is undefined\n +at /);
    expect(text.err).toContain("This is a bug in sidenet");
    expect(JSON.parse(text.out)).toEqual({ error: { code: "C-BUG", message: "x is undefined" } });
  });

  it("gives the code and the bare message of a library error as JSON", () => {
    const { text, terminal } = recorder();
    const session = new Session(terminal, true);
    session.fail(new SidenetError("T-SHAPE", "a is not b."));
    expect(JSON.parse(text.out)).toEqual({ error: { code: "T-SHAPE", message: "a is not b." } });
    expect(session.exitCode).toBe(1);
    session.fail(new SidenetError("C-USAGE", "--a and --b exclude each other."));
    expect(session.exitCode).toBe(2);
  });
});

describe("a report", () => {
  it("rewrites progress in place for a person, and clears it before anything else", () => {
    const { text, terminal } = recorder(true);
    const report = new Report(terminal, false);
    report.progress("1 of 2");
    report.progress("2 of 2");
    report.print("done");
    expect(text.err).toBe("1 of 2\r      \r2 of 2\r      \r");
    expect(text.out).toBe("done\n");
  });

  it("shows no progress to a file, and with --json prints no text", () => {
    const { text, terminal } = recorder();
    const report = new Report(terminal, true);
    report.progress("1 of 2");
    report.print("done");
    report.note("remark");
    expect(text).toEqual({ out: "", err: "remark\n" });
  });
});

it("aligns tables: names to the left, numbers to the right", () => {
  expect(formatTable(["", "n"], [["a", 10], ["bcd", 7]])).toBe("      n\na    10\nbcd   7"); // biome-ignore format: rows
});

describe("sidenet doctor", () => {
  it.each(gpu ? ["cpu", "webgpu", "wasm", "auto"] : ["cpu", "wasm"])(
    "computes on %s and agrees with the reference",
    async (device) => {
      const run = await sidenet("doctor", "--device", device, "--json");
      const report = run.json();
      expect(report).toMatchObject({ ok: true, sidenet: packageVersion(), node: process.version });
      const {
        device: used,
        smoke,
        problem,
      } = report.computed as {
        device: string;
        smoke: { dtype: string; passed: boolean; error: number }[];
        problem: string | null;
      };
      const hardware = report.adapter !== null && !(report.adapter as { software: boolean }).software;
      expect(used).toBe(device === "auto" ? (hardware ? "webgpu" : "wasm") : device);
      expect(problem).toBeNull();
      expect(smoke[0]).toMatchObject({ dtype: "f32", passed: true });
      expect(smoke.every(({ error }) => error > 0 && error < 2e-3)).toBe(true);
      expect(Object.keys(report.features as object)).toEqual([
        "shader-f16",
        "subgroups",
        "timestamp-query",
        "immediates",
      ]);
      expect(run.exitCode).toBe(0);
    },
  );

  it.runIf(gpu)("names adapter, driver, features and limits", async () => {
    const { out } = await sidenet("doctor", "--device", "webgpu");
    for (const label of ["sidenet", "adapter", "driver", "features", "limits", "auto", "computed"]) {
      expect(out).toMatch(new RegExp(`^${label} +\\S`, "m"));
    }
    expect(out).toMatch(/^computed +OK: rmsNorm and linear in f32 on webgpu/m);
  });
});

describe("what to install", () => {
  const debian = parseOsRelease(
    'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\n',
  );

  it("is the exact line for Debian and Ubuntu, from backports where Debian's own Mesa is too old", () => {
    expect(debian).toEqual({ id: "debian", codename: "bookworm", name: "Debian GNU/Linux 12 (bookworm)" });
    expect(installAdvice("linux", debian).join("\n")).toContain(
      "sudo apt-get install -y -t bookworm-backports mesa-vulkan-drivers libvulkan1",
    );
    for (const release of [
      { id: "debian", codename: "trixie", name: "" },
      { id: "ubuntu", codename: "noble", name: "" },
    ]) {
      expect(installAdvice("linux", release)).toContain(
        "    sudo apt-get install -y mesa-vulkan-drivers libvulkan1",
      );
    }
  });

  it("is something for every other system", () => {
    expect(installAdvice("linux", parseOsRelease("ID=fedora\n")).join()).toContain("dnf install");
    expect(installAdvice("linux", null).join()).toContain("Mesa");
    expect(installAdvice("darwin", null).join()).toContain("Metal");
  });
});

describe("a progress bar", () => {
  it("shows share, bytes, speed and the time left, and never leaves its width", () => {
    expect(progressBar("f", 45e6, 90e6, 3)).toBe(
      "f [============>           ] 50 %, 45 MB of 90 MB, 15 MB/s, 3 s left",
    );
    for (const done of [0, 1, 89e6, 90e6, 100e6])
      expect(progressBar("f", done, 90e6, 0)).toMatch(/^f \[[=> ]{24}\] \d+ %, [\d.]+ [kM]?B of 90 MB$/);
    expect(progressBar("f", 0, 0, 1)).toContain("100 %");
  });

  it("is a line per file where nobody watches", () => {
    const { text, terminal } = recorder();
    const { onProgress } = hubOptions(new Report(terminal, true));
    for (const done of [1, 2, 3]) onProgress?.("config.json", done, 3);
    onProgress?.("model.safetensors", 5e6, 5e6);
    expect(text).toEqual({
      out: "",
      err: "fetching config.json (1 kB)\nfetching model.safetensors (5.0 MB)\n",
    });
  });
});
