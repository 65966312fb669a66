// Which apt commands install a software Vulkan driver that Dawn accepts. These functions only compute on texts; they do
// not touch the system.
//
// The backports source is derived from the machine's own Debian source. So it has the mirror, options and key that the
// machine trusts already, and this repository names no host.

import { installLines } from "./apt.mjs";

/** The first major version of Mesa whose lavapipe Dawn accepts. Debian 12 has 22.3.6. */
export const MESA_MAJOR_MIN = 23;
const PACKAGES = ["mesa-vulkan-drivers", "libvulkan1"];
const OUR_SOURCE = "/etc/apt/sources.list.d/sidenet-backports";

/**
 * The source file to add, if any, and the release to install from: `{ source: { path, text } | null, release: "<suite>" | null }`.
 * Null if no source of this machine leads to a driver that Dawn accepts.
 *
 * @param osRelease  text of /etc/os-release
 * @param madison    output of `apt-cache madison mesa-vulkan-drivers`: every version on offer
 * @param candidate  the version that `apt-get install` without options would take, or null
 * @param targets    output of `apt-get indextargets 'Created-By: Packages'`: the sources in use
 * @param readFile   returns the text of a source file
 */
export function planDriver({ osRelease, madison, candidate, targets, readFile }) {
  if (candidate !== null && mesaMajor(candidate) >= MESA_MAJOR_MIN) return { source: null, release: null };

  const backport = parseMadison(madison).find(
    ({ version, suite }) => suite.endsWith("-backports") && mesaMajor(version) >= MESA_MAJOR_MIN,
  );
  if (backport) return { source: null, release: backport.suite };

  const codename = /^VERSION_CODENAME="?([^"\n]+)/m.exec(osRelease)?.[1];
  const debian = findDebianTarget(parseStanzas(targets), codename);
  if (debian === undefined) return null;
  const path = debian.Sourcesentry.replace(/:\d+$/, "");
  const text = deriveBackports(readFile(path), {
    deb822: path.endsWith(".sources"),
    uri: debian["Repo-URI"],
    suite: debian.Release,
    codename,
  });
  if (text === null) return null;
  const source = { path: `${OUR_SOURCE}.${path.endsWith(".sources") ? "sources" : "list"}`, text };
  return { source, release: `${codename}-backports` };
}

/** What `apt-get install` takes to install the driver of a plan. */
export function driverPackages({ release }) {
  return [...(release ? ["-t", release] : []), ...PACKAGES];
}

/** A plan as shell lines for a person. */
export function shellLines(plan) {
  const { source } = plan;
  const addSource = source ? [`sudo tee ${source.path} <<'END'\n${source.text}END`] : [];
  return [...addSource, ...installLines(...driverPackages(plan))];
}

/**
 * The entry of a source file that offers `suite`'s main component at `uri`, turned into one for
 * `<codename>-backports`; null if the file has no such entry.
 */
export function deriveBackports(fileText, { deb822, uri, suite, codename }) {
  const backports = `${codename}-backports`;
  return deb822
    ? deriveStanza(fileText, { uri, suite, backports })
    : deriveLine(fileText, { uri, suite, backports });
}

/** The deb822 form: stanzas of `Field: value`, where lines that start with a blank continue a value. */
function deriveStanza(fileText, { uri, suite, backports }) {
  const words = (value) => (value ?? "").split(/\s+/).filter(Boolean);
  const stanza = parseStanzas(fileText).find(
    (fields) =>
      words(fields.Types).includes("deb") &&
      words(fields.URIs).some((each) => sameUri(each, uri)) &&
      words(fields.Suites).includes(suite) &&
      words(fields.Components).includes("main") &&
      fields.Enabled !== "no",
  );
  if (stanza === undefined) return null;
  const derived = { ...stanza, Types: "deb", Suites: backports, Components: "main" };
  return Object.entries(derived)
    .map(([field, value]) => `${field}:${value.startsWith("\n") ? "" : " "}${value}\n`)
    .join("");
}

/** The one-line form: `deb [options] uri suite component...`. */
function deriveLine(fileText, { uri, suite, backports }) {
  const entry = /^\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)/;
  for (const line of fileText.split("\n")) {
    const [, options = "", lineUri, lineSuite, components] = entry.exec(line) ?? [];
    if (lineUri === undefined || !sameUri(lineUri, uri)) continue;
    if (lineSuite !== suite || !components.split(/\s+/).includes("main")) continue;
    return `deb ${options}${lineUri} ${backports} main\n`;
  }
  return null;
}

/**
 * Debian's own archive among the sources in use; other archives may also have a "main" of this codename. Origin and Codename
 * are known only after an `apt-get update`; before it, the release that the source names is compared.
 */
function findDebianTarget(targets, codename) {
  if (codename === undefined) return undefined;
  const main = targets.filter((target) => target.Component === "main");
  return (
    main.find(
      ({ Origin, Label, Codename }) => Origin === "Debian" && Label === "Debian" && Codename === codename,
    ) ?? main.find(({ Origin, Release }) => Origin === undefined && Release === codename)
  );
}

/** Lines of `name | version | uri suite/component arch Packages`. */
function parseMadison(text) {
  return text
    .split("\n")
    .map((line) => line.split("|").map((part) => part.trim()))
    .filter((parts) => parts.length === 3 && parts[2].endsWith(" Packages"))
    .map(([, version, origin]) => ({ version, suite: origin.split(" ")[1].split("/")[0] }));
}

function mesaMajor(version) {
  return Number.parseInt(version.replace(/^\d+:/, ""), 10); // the epoch, if there is one
}

/** Stanzas of deb822 text as objects; values keep their line breaks. */
function parseStanzas(text) {
  const stanzas = text
    .split("\n")
    .filter((line) => !line.startsWith("#"))
    .join("\n")
    .split(/\n\s*\n/)
    .map((stanza) => Object.fromEntries([...stanza.matchAll(FIELD)].map(([, name, value]) => [name, value])));
  return stanzas.filter((fields) => Object.keys(fields).length > 0);
}

const FIELD = /^([A-Za-z][\w-]*):[ \t]*((?:[^\n]*)(?:\n[ \t]+[^\n]*)*)/gm;

function sameUri(a, b) {
  return a.replace(/\/+$/, "") === b.replace(/\/+$/, "");
}
