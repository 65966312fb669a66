import type { Adapter } from "../methods/adapter.ts";
import type { Decoder } from "../model/decoder.ts";
import { ModelCache } from "./model-cache.ts";

/**
 * Keys and values of the text of one prompt, for later calls of `generate` that continue it, such as the turns of a conversation:
 * what they share with the text is not read again. It holds them until `dispose()`, and forgets them where the model, its prefix or
 * the adapter is another; call `dispose()` after training either.
 */
export class KeptText {
  #ids: readonly number[] = [];
  #caches: ModelCache | null = null;
  #owners: readonly unknown[] = [];

  /** Caches for `capacity` positions, and how many tokens of a prompt they hold: not its last one, whose logits are wanted. @internal */
  take(
    decoder: Decoder,
    adapter: Adapter | null,
    promptIds: readonly number[],
    capacity: number,
  ): { caches: ModelCache; offset: number } {
    const owners = [decoder, adapter, decoder.prefixIds.join()];
    const isOwn = owners.every((owner, i) => owner === this.#owners[i]);
    let offset = 0;
    if (isOwn) while (offset < promptIds.length - 1 && this.#ids[offset] === promptIds[offset]) offset++;
    const kept = this.#caches;
    if (kept === null || offset === 0) {
      this.dispose();
      this.#owners = owners;
      return { caches: ModelCache.empty(decoder, [adapter], 1, capacity), offset: 0 };
    }
    const caches = kept.capacity < capacity ? kept.grown(capacity) : kept;
    if (caches !== kept) kept.dispose();
    this.#caches = null;
    return { caches, offset };
  }

  /** Takes back the caches, which hold these tokens. @internal */
  put(ids: readonly number[], caches: ModelCache): void {
    this.#ids = ids;
    this.#caches = caches;
  }

  /** Frees the keys and values. What is generated next is read from the beginning. */
  dispose(): void {
    this.#caches?.dispose();
    this.#caches = null;
    this.#ids = [];
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
