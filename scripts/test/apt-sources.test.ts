import { describe, expect, it } from "vitest";
import { deriveBackports, driverPackages, planDriver, shellLines } from "../lib/apt-sources.mjs";

// A made-up mirror stands for whatever the machine uses.
const MIRROR = "http://mirror.example/debian";
const KEY = "/usr/share/keyrings/debian-archive-keyring.gpg";

const DEBIAN_12 = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_CODENAME=bookworm\n';

const SOURCES_FILE = `Types: deb
# a comment inside the stanza
URIs: ${MIRROR}
Suites: bookworm bookworm-updates
Components: main
Signed-By: ${KEY}

Types: deb
URIs: ${MIRROR}-security
Suites: bookworm-security
Components: main
Signed-By: ${KEY}
`;

const LIST_FILE = `# deb ${MIRROR} bookworm main
deb [arch=amd64 signed-by=${KEY}] ${MIRROR}/ bookworm main contrib # ours
deb ${MIRROR}-security bookworm-security main
`;

const target = (fields: Record<string, string>) =>
  Object.entries({ Component: "main", ...fields })
    .map(([name, value]) => `${name}: ${value}\n`)
    .join("");

const debianTarget = (file: string, more: Record<string, string> = {}) =>
  target({
    Codename: "bookworm",
    Label: "Debian",
    Origin: "Debian",
    Release: "bookworm",
    "Repo-URI": `${MIRROR}/`,
    Sourcesentry: file,
    ...more,
  });

const thirdParty = target({
  Codename: "bookworm",
  Label: "Tools",
  Origin: "Tools Inc.",
  Release: "bookworm",
  "Repo-URI": "https://tools.example/apt/",
  Sourcesentry: "/etc/apt/sources.list.d/tools.list:1",
});

const MADISON_12 = ` mesa-vulkan-drivers | 22.3.6-1+deb12u2 | ${MIRROR} bookworm/main amd64 Packages\n`;
const BACKPORT = ` mesa-vulkan-drivers | 25.0.7-2~bpo12+1 | ${MIRROR} bookworm-backports/main amd64 Packages\n`;

const system = {
  osRelease: DEBIAN_12,
  madison: MADISON_12,
  candidate: "22.3.6-1+deb12u2" as string | null,
  targets: `${thirdParty}\n${debianTarget("/etc/apt/sources.list.d/debian.sources:1")}`,
  readFile: (path: string) => (path.endsWith(".sources") ? SOURCES_FILE : LIST_FILE),
};

describe("planDriver", () => {
  it("installs plainly where the release's own Mesa will do", () => {
    const plan = planDriver({ ...system, candidate: "25.0.7-2", osRelease: "VERSION_CODENAME=trixie\n" });
    expect(plan).toEqual({ source: null, release: null });
    expect(driverPackages(plan!)).not.toContain("-t");
  });

  it("takes backports that are configured already, and writes no source", () => {
    expect(planDriver({ ...system, madison: BACKPORT + MADISON_12 })).toEqual({
      source: null,
      release: "bookworm-backports",
    });
  });

  it("derives a deb822 source from Debian's own, not from a third party's of the same codename", () => {
    const plan = planDriver(system);
    expect(plan).toEqual({
      source: {
        path: "/etc/apt/sources.list.d/sidenet-backports.sources",
        text: `Types: deb\nURIs: ${MIRROR}\nSuites: bookworm-backports\nComponents: main\nSigned-By: ${KEY}\n`,
      },
      release: "bookworm-backports",
    });
    expect(shellLines(plan!)).toEqual([
      `sudo tee /etc/apt/sources.list.d/sidenet-backports.sources <<'END'\n${plan!.source!.text}END`,
      "sudo apt-get update",
      "sudo apt-get install -y --no-install-recommends -t bookworm-backports mesa-vulkan-drivers libvulkan1",
    ]);
  });

  it("derives a one-line source, with its options", () => {
    const targets = debianTarget("/etc/apt/sources.list:2");
    expect(planDriver({ ...system, targets })?.source).toEqual({
      path: "/etc/apt/sources.list.d/sidenet-backports.list",
      text: `deb [arch=amd64 signed-by=${KEY}] ${MIRROR}/ bookworm-backports main\n`,
    });
  });

  it("works before the first apt-get update, when origins are unknown", () => {
    const targets = target({
      Release: "bookworm",
      "Repo-URI": MIRROR,
      Sourcesentry: "/etc/apt/sources.list.d/debian.sources:1",
    });
    const plan = planDriver({ ...system, madison: "", candidate: null, targets });
    expect(plan?.release).toBe("bookworm-backports");
  });

  it("follows a source that names the suite, not the codename", () => {
    const targets = debianTarget("/etc/apt/sources.list:1", { Release: "oldstable" });
    const readFile = () => `deb ${MIRROR} oldstable main\n`;
    expect(planDriver({ ...system, targets, readFile })?.source?.text).toBe(
      `deb ${MIRROR} bookworm-backports main\n`,
    );
  });

  it("gives no plan where nothing on offer will do", () => {
    const targets = debianTarget("/etc/apt/sources.list:1", { Origin: "Ubuntu", Label: "Ubuntu" });
    expect(planDriver({ ...system, targets })).toBeNull();
    expect(planDriver({ ...system, osRelease: "ID=other\n" })).toBeNull();
  });

  it("reads a version with an epoch", () => {
    expect(planDriver({ ...system, candidate: "1:23.1-1" })).toEqual({ source: null, release: null });
  });
});

describe("deriveBackports", () => {
  const wanted = { deb822: true, uri: MIRROR, suite: "bookworm", codename: "bookworm" };

  it("keeps a key that is written out in the file", () => {
    const key =
      "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY865UxYJ\n -----END PGP PUBLIC KEY BLOCK-----";
    const file = `Types: deb deb-src\nURIs: ${MIRROR}\nSuites: bookworm\nComponents: main\nSigned-By:${key}\n`;
    expect(deriveBackports(file, wanted)).toBe(
      `Types: deb\nURIs: ${MIRROR}\nSuites: bookworm-backports\nComponents: main\nSigned-By:${key}\n`,
    );
  });

  it("passes over entries that are switched off, for sources or for other components", () => {
    for (const [from, to] of [
      ["Types: deb", "Types: deb-src"],
      ["Components: main", "Components: contrib"],
      ["Types: deb", "Enabled: no\nTypes: deb"],
    ] as const) {
      expect(deriveBackports(SOURCES_FILE.replace(from, to), wanted)).toBeNull();
    }
    expect(deriveBackports(`#${LIST_FILE.split("\n")[1]}`, { ...wanted, deb822: false })).toBeNull();
  });
});
