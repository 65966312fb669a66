/** Memory by category: bars on one scale for the peak of each run and for current memory. */
import { type BytesByCategory, CATEGORIES, type Category } from "@sidenet/tensor";
import { byId, bytes, element } from "./dom.ts";

/** The categories, from the longest-lived to the shortest-lived. */
const ORDER: readonly Category[] = [
  "weights",
  "adapter",
  "optimizer",
  "gradients",
  "rungs",
  "saved",
  "workspace",
];

const MEANING: Readonly<Record<Category, string>> = {
  weights: "the frozen model, most of it in 4 bits",
  adapter: "what is trained",
  optimizer: "AdamW's moments",
  gradients: "of what is trained",
  rungs: "hidden states that the side network reads",
  saved: "activations kept for the backward pass",
  workspace: "everything else, the layer at work above all",
};

export interface MemoryBar {
  readonly label: string;
  readonly what: "peak" | "live";
  readonly live: BytesByCategory;
}

const total = (memory: BytesByCategory): number =>
  CATEGORIES.reduce((sum, category) => sum + memory[category], 0);

export function showMemory(bars: readonly MemoryBar[]): void {
  const most = Math.max(...bars.map(({ live }) => total(live)), 1);
  const track = ({ label, what, live }: MemoryBar) => {
    const parts = ORDER.filter((category) => live[category] > 0).map((category) => {
      const part = element("i", { title: `${category}: ${bytes(live[category])}`, class: `c-${category}` });
      part.style.width = `${(100 * live[category]) / most}%`;
      return part;
    });
    const text = ORDER.filter((category) => live[category] > 0)
      .map((category) => `${category} ${bytes(live[category])}`)
      .join(", ");
    return element(
      "div",
      { class: "track", role: "img", "aria-label": `${label}, ${what}: ${text}`, "data-what": what },
      ...parts,
    );
  };
  byId("memory").replaceChildren(
    ...bars.flatMap((bar) => [
      element("span", {}, bar.label),
      track(bar),
      element("span", { class: "value" }, bytes(total(bar.live))),
    ]),
  );
}

/** Names and bytes of the categories at the peak of the current run. */
export function showMemoryKey(peak: BytesByCategory | null): void {
  byId("memory-key").replaceChildren(
    ...ORDER.map((category) =>
      element(
        "li",
        { title: MEANING[category], "data-bytes": String(peak?.[category] ?? 0) },
        element("i", { class: `c-${category}`, "aria-hidden": "true" }),
        category,
        element("b", {}, peak ? bytes(peak[category]) : ""),
      ),
    ),
  );
}
