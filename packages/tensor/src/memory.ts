import { SidenetError } from "./errors.ts";

/**
 * What bytes are for (methods.md, 5). `weights` is the frozen backbone, `adapter` what is trained, `saved` what the tape
 * keeps for the backward pass, `rungs` the hidden states a side network reads, `workspace` everything else.
 */
export const CATEGORIES = [
  "weights",
  "adapter",
  "gradients",
  "optimizer",
  "saved",
  "rungs",
  "workspace",
] as const;
/** What memory is for; docs/memory.md says what each holds. */
export type Category = (typeof CATEGORIES)[number];
/** Bytes by category; their sum is the total. */
export type BytesByCategory = Record<Category, number>;

/** One live allocation. */
export interface Allocation {
  readonly sizeBytes: number;
  /** The op that made it, or the caller's label. */
  readonly label: string;
  category: Category;
}

/** Peak of a device since the last `resetPeak`: total, by category, and the largest allocations that were live then. */
export interface PeakReport {
  readonly peakBytes: number;
  readonly byCategory: BytesByCategory;
  readonly largest: readonly { label: string; category: Category; sizeBytes: number }[];
}

function refuseCategory(category: string): SidenetError {
  return new SidenetError(
    "T-NAME",
    `there is no category "${category}" of memory, only ${CATEGORIES.join(", ")}.`,
  );
}

const noBytes = (): BytesByCategory =>
  Object.fromEntries(CATEGORIES.map((category) => [category, 0])) as BytesByCategory;

const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** "weights 120.0 MiB, saved 3.2 MiB": the non-empty categories, largest first. */
export function formatBreakdown(bytes: BytesByCategory): string {
  const parts = CATEGORIES.filter((category) => bytes[category] > 0)
    .sort((a, b) => bytes[b] - bytes[a])
    .map((category) => `${category} ${mib(bytes[category])}`);
  return parts.length > 0 ? parts.join(", ") : "nothing live";
}

/**
 * Live bytes by category, their peak, and what was live at that peak.
 *
 * An allocation was live at the peak if it was made before it and is either still live or was freed after it. So only the frees
 * since the last peak have to be remembered.
 */
export class MemoryAccount {
  /** An allocation that would exceed this many live bytes throws `T-OUT-OF-MEMORY`. */
  limitBytes = Number.POSITIVE_INFINITY;
  /** Called with every allocation as it is made. */
  onReserve: ((allocation: Allocation) => void) | null = null;
  #highestBytes = 0;
  #highest = noBytes();
  #live = noBytes();
  #liveBytes = 0;
  /** The live allocations, and when each was made. */
  #bornAt = new Map<Allocation, number>();
  #clock = 0;
  #peakBytes = 0;
  #peakAt = 0;
  #peak = noBytes();
  #freedSincePeak: Allocation[] = [];

  /** Live bytes; each tensor counts in multiples of 16. */
  get liveBytes(): number {
    return this.#liveBytes;
  }

  /** Highest number of live bytes since the beginning or the last `resetPeak`. */
  get peakBytes(): number {
    return this.#peakBytes;
  }

  /** Number of live allocations. */
  get liveCount(): number {
    return this.#bornAt.size;
  }

  /** Live bytes by category. */
  get live(): BytesByCategory {
    return { ...this.#live };
  }

  /** Adds an allocation. Throws `T-OUT-OF-MEMORY` if it would exceed the limit, `T-NAME` for an unknown category. */
  reserve(allocation: Allocation): void {
    if (typeof this.#live[allocation.category] !== "number") throw refuseCategory(allocation.category);
    if (this.#liveBytes + allocation.sizeBytes > this.limitBytes) {
      throw new SidenetError(
        "T-OUT-OF-MEMORY",
        this.explain(allocation, `the limit is ${mib(this.limitBytes)}`),
      );
    }
    this.#bornAt.set(allocation, ++this.#clock);
    this.#live[allocation.category] += allocation.sizeBytes;
    this.#liveBytes += allocation.sizeBytes;
    if (this.#liveBytes > this.#peakBytes) this.#notePeak();
    if (this.#liveBytes > this.#highestBytes) this.#noteHighest();
    this.onReserve?.(allocation);
  }

  /**
   * The peak since the previous call of this method, by whomever: bytes in total and by category. For timelines: unlike `peak`, it
   * leaves out what `Device.repeat` issues again. @internal
   */
  takeHighest(): { bytes: number; byCategory: BytesByCategory } {
    const taken = { bytes: this.#highestBytes, byCategory: this.#highest };
    this.#noteHighest();
    return taken;
  }

  /** Removes an allocation; one that is not counted changes nothing. */
  free(allocation: Allocation): void {
    const bornAt = this.#bornAt.get(allocation);
    if (bornAt === undefined) return;
    this.#bornAt.delete(allocation);
    this.#live[allocation.category] -= allocation.sizeBytes;
    this.#liveBytes -= allocation.sizeBytes;
    if (bornAt > this.#peakAt) return;
    const { label, category, sizeBytes } = allocation; // not the allocation: it would keep its memory alive
    this.#freedSincePeak.push({ label, category, sizeBytes });
  }

  /** Counts an allocation under another category from now on. Throws `T-NAME` for an unknown category. */
  recategorize(allocation: Allocation, category: Category): void {
    if (!this.#bornAt.has(allocation)) return;
    if (typeof this.#live[category] !== "number") throw refuseCategory(category);
    this.#live[allocation.category] -= allocation.sizeBytes;
    this.#live[category] += allocation.sizeBytes;
    allocation.category = category;
    if (this.#liveBytes === this.#peakBytes) this.#notePeak();
    if (this.#liveBytes === this.#highestBytes) this.#noteHighest();
  }

  /** Restarts the peak from the current live bytes. */
  resetPeak(): void {
    this.#notePeak();
  }

  /**
   * The peak since the beginning or the last `resetPeak`, with the `largest` allocations of that moment.
   */
  peak(largest = 12): PeakReport {
    const then = [...this.#freedSincePeak];
    for (const [allocation, bornAt] of this.#bornAt) if (bornAt <= this.#peakAt) then.push(allocation);
    return {
      peakBytes: this.#peakBytes,
      byCategory: { ...this.#peak },
      largest: then
        .sort((a, b) => b.sizeBytes - a.sizeBytes)
        .slice(0, largest)
        .map(({ label, category, sizeBytes }) => ({ label, category, sizeBytes })),
    };
  }

  /** The text of an out-of-memory error: the request, the reason, the breakdown, and what would help. */
  explain(allocation: Allocation, why: string): string {
    return (
      `${allocation.label} asked for ${mib(allocation.sizeBytes)} (${allocation.category}), but ${why}. ` +
      `Live now: ${mib(this.#liveBytes)} (${formatBreakdown(this.#live)}). ` +
      "A smaller batch or context, a smaller side network or 16-bit weights would help."
    );
  }

  /** Live allocations, for leak messages. */
  allocations(): IterableIterator<Allocation> {
    return this.#bornAt.keys();
  }

  #noteHighest(): void {
    this.#highestBytes = this.#liveBytes;
    this.#highest = { ...this.#live };
  }

  /** Of several moments with as many bytes the first is the peak, unless something is recategorized in a later one. */
  #notePeak(): void {
    this.#peakBytes = this.#liveBytes;
    this.#peak = { ...this.#live };
    this.#peakAt = this.#clock;
    this.#freedSincePeak.length = 0;
  }
}
