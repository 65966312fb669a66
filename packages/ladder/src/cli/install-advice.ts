/** What a Linux system is, from its /etc/os-release. */
export interface LinuxRelease {
  /** "debian", "ubuntu", "fedora" */
  readonly id: string;
  /** "bookworm" */
  readonly codename: string;
  /** For people: "Debian GNU/Linux 12 (bookworm)" */
  readonly name: string;
}

export function parseOsRelease(text: string): LinuxRelease {
  const field = (name: string): string =>
    new RegExp(`^${name}=(?:"([^"]*)"|(.*))$`, "m").exec(text)?.slice(1).find(Boolean) ?? "";
  return { id: field("ID"), codename: field("VERSION_CODENAME"), name: field("PRETTY_NAME") };
}

/** Debian's own Mesa is too old for Dawn there, so the driver has to come from backports. */
const OLD_MESA = ["bookworm"];

/** How to get a Vulkan driver that Dawn accepts: lines for a person, commands indented. */
export function installAdvice(platform: NodeJS.Platform, release: LinuxRelease | null): string[] {
  if (platform !== "linux") {
    return ["Dawn uses the system's own Metal or Direct3D 12: update the system and the graphics driver."];
  }
  const advice = [
    "With a graphics card: install its Vulkan driver. Without one: a software driver, Mesa 23 or later:",
  ];
  switch (release?.id) {
    case "debian":
    case "ubuntu": {
      const backports = OLD_MESA.includes(release.codename) ? `${release.codename}-backports` : null;
      advice.push("    sudo apt-get update");
      if (!backports) return [...advice, "    sudo apt-get install -y mesa-vulkan-drivers libvulkan1"];
      return [
        ...advice,
        `    sudo apt-get install -y -t ${backports} mesa-vulkan-drivers libvulkan1`,
        `If apt does not know ${backports}: in a clone of sidenet, \`sudo node scripts/setup.mjs\` adds it and installs both.`,
      ];
    }
    case "fedora":
      return [...advice, "    sudo dnf install mesa-vulkan-drivers vulkan-loader"];
    case "arch":
      return [...advice, "    sudo pacman -S vulkan-swrast vulkan-icd-loader"];
    case "alpine":
      return [...advice, "    sudo apk add mesa-vulkan-swrast vulkan-loader"];
    default:
      return [...advice, "    Mesa's lavapipe and the Vulkan loader, from your distribution"];
  }
}
