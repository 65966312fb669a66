// Which apt commands bring a software Vulkan driver that Dawn accepts. Text in, plan out: nothing here
// touches the system.
//
// The backports source is derived from the machine's own Debian source, so it uses the mirror, the
// options and the key that this machine trusts already, and no host name stands in this repository.

/** Dawn refuses older lavapipe for a missing feature (Debian 12's own is 22.3.6). */
export const MESA_MAJOR_MIN = 23;
const PACKAGES = ["mesa-vulkan-drivers", "libvulkan1"];
const OUR_SOURCE = "/etc/apt/sources.list.d/sidenet-backports";

/**
 * What to do: `{ source: { path, text } | null, release: "<suite>" | null }`, or null if no source of this
 * machine leads to a driver that Dawn accepts.
 *
 * @param osRelease  text of /etc/os-release
 * @param madison    output of `apt-cache madison mesa-vulkan-drivers`: every version on offer
 * @param candidate  the version that a plain install would take, or null
 * @param targets    output of `apt-get indextargets 'Created-By: Packages'`: the sources in use
 * @param readFile   gives the text of a source file
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

/** Arguments of `apt-get` that install the driver of a plan. */
export function installArguments({ release }) {
  return ["install", "-y", "--no-install-recommends", ...(release ? ["-t", release] : []), ...PACKAGES];
}

/** The plan as lines for a person to paste into a shell. */
export function shellLines(plan) {
  const { source } = plan;
  return [
    ...(source ? [`sudo tee ${source.path} <<'END'\n${source.text}END`] : []),
    "sudo apt-get update",
    `sudo apt-get ${installArguments(plan).join(" ")}`,
  ];
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

/** deb822 form: stanzas of `Field: value`, more of a value on lines that start with a blank. */
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

/** One-line form: `deb [options] uri suite component...`. */
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
 * Debian's own archive among the sources in use: others offer a "main" of this codename too. Origin and
 * Codename are known only after an `apt-get update`; before it the release as written must do.
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

/** `name | version | uri suite/component arch Packages`, one a line. */
function parseMadison(text) {
  return text
    .split("\n")
    .map((line) => line.split("|").map((part) => part.trim()))
    .filter((parts) => parts.length === 3 && parts[2].endsWith(" Packages"))
    .map(([, version, origin]) => ({ version, suite: origin.split(" ")[1].split("/")[0] }));
}

function mesaMajor(version) {
  return Number.parseInt(version.replace(/^\d+:/, ""), 10); // an epoch may come first
}

/** deb822 text as objects; a value keeps its own line breaks. */
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
