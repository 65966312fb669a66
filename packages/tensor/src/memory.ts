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
/** Bytes of each category; their sum is the whole. */
export type BytesByCategory = Record<Category, number>;

/** One live allocation, as the account sees it. */
export interface Allocation {
  readonly sizeBytes: number;
  /** The op, or the caller's word, that made it. */
  readonly label: string;
  category: Category;
}

/** Peak of a device since the last `resetPeak`: the sum, its parts, and the largest things that were live then. */
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

interface Entry {
  readonly allocation: Allocation;
  readonly bornAt: number;
}

/**
 * Live bytes by category, their peak, and what was live at that peak.
 *
 * The contents of the peak cost nothing per allocation: an allocation was live at the peak when it was born before it and
 * is either still live or was freed after it, so only frees since the last peak have to be remembered.
 */
export class MemoryAccount {
  /** An allocation that would pass this many live bytes is refused with `T-OUT-OF-MEMORY`. */
  limitBytes = Number.POSITIVE_INFINITY;
  /** Shown every allocation as it is made. */
  onReserve: ((allocation: Allocation) => void) | null = null;
  #highestBytes = 0;
  #highest = noBytes();
  #live = noBytes();
  #liveBytes = 0;
  #entries = new Map<Allocation, Entry>();
  #clock = 0;
  #peakBytes = 0;
  #peakAt = 0;
  #peak = noBytes();
  #freedSincePeak: Allocation[] = [];

  /** Bytes in use now, in units of 16 a tensor. */
  get liveBytes(): number {
    return this.#liveBytes;
  }

  /** Number of live allocations. */
  get liveCount(): number {
    return this.#entries.size;
  }

  /** The same by category. */
  get live(): BytesByCategory {
    return { ...this.#live };
  }

  /** Throws `T-OUT-OF-MEMORY` when the budget does not hold `sizeBytes` more, `T-NAME` for a category that there is not. */
  reserve(allocation: Allocation): void {
    if (typeof this.#live[allocation.category] !== "number") throw refuseCategory(allocation.category);
    if (this.#liveBytes + allocation.sizeBytes > this.limitBytes) {
      throw new SidenetError(
        "T-OUT-OF-MEMORY",
        this.explain(allocation, `the limit is ${mib(this.limitBytes)}`),
      );
    }
    this.#entries.set(allocation, { allocation, bornAt: ++this.#clock });
    this.#live[allocation.category] += allocation.sizeBytes;
    this.#liveBytes += allocation.sizeBytes;
    this.#notePeak();
    if (this.#liveBytes > this.#highestBytes) this.#noteHighest();
    this.onReserve?.(allocation);
  }

  /** The most that was live since this was last asked, in bytes, and its parts. */
  takeHighest(): { bytes: number; byCategory: BytesByCategory } {
    const taken = { bytes: this.#highestBytes, byCategory: this.#highest };
    this.#noteHighest();
    return taken;
  }

  /** Takes an allocation out of the account; one that is not in it changes nothing. */
  free(allocation: Allocation): void {
    const entry = this.#entries.get(allocation);
    if (entry === undefined) return;
    this.#entries.delete(allocation);
    this.#live[allocation.category] -= allocation.sizeBytes;
    this.#liveBytes -= allocation.sizeBytes;
    if (entry.bornAt <= this.#peakAt) this.#freedSincePeak.push({ ...allocation });
  }

  /** Counts an allocation under another category from now on; the sum does not change. Throws `T-NAME` as `reserve` does. */
  recategorize(allocation: Allocation, category: Category): void {
    if (!this.#entries.has(allocation)) return;
    if (typeof this.#live[category] !== "number") throw refuseCategory(category);
    this.#live[allocation.category] -= allocation.sizeBytes;
    this.#live[category] += allocation.sizeBytes;
    allocation.category = category;
    if (this.#liveBytes === this.#peakBytes) this.#peak = { ...this.#live };
    if (this.#liveBytes === this.#highestBytes) this.#noteHighest();
  }

  /** Starts a new peak from what is live now. */
  resetPeak(): void {
    this.#peakBytes = -1;
    this.#notePeak();
  }

  /**
   * The most that was live at a time since the account began or `resetPeak`, with the `largest` allocations of that
   * moment.
   */
  peak(largest = 12): PeakReport {
    const then = [...this.#freedSincePeak];
    for (const { allocation, bornAt } of this.#entries.values()) {
      if (bornAt <= this.#peakAt) then.push(allocation);
    }
    return {
      peakBytes: Math.max(0, this.#peakBytes),
      byCategory: { ...this.#peak },
      largest: then
        .sort((a, b) => b.sizeBytes - a.sizeBytes)
        .slice(0, largest)
        .map(({ label, category, sizeBytes }) => ({ label, category, sizeBytes })),
    };
  }

  /** The text of an out-of-memory error: the request, why, the breakdown, and what would help. */
  explain(allocation: Allocation, why: string): string {
    return (
      `${allocation.label} asked for ${mib(allocation.sizeBytes)} (${allocation.category}), but ${why}. ` +
      `Live now: ${mib(this.#liveBytes)} (${formatBreakdown(this.#live)}). ` +
      "A smaller batch or context, a smaller side network or 16-bit weights would help."
    );
  }

  /** Live allocations, for leak messages. */
  *allocations(): IterableIterator<Allocation> {
    yield* this.#entries.keys();
  }

  #noteHighest(): void {
    this.#highestBytes = this.#liveBytes;
    this.#highest = { ...this.#live };
  }

  #notePeak(): void {
    if (this.#liveBytes <= this.#peakBytes) return;
    this.#peakBytes = this.#liveBytes;
    this.#peak = { ...this.#live };
    this.#peakAt = this.#clock;
    this.#freedSincePeak.length = 0;
  }
}
