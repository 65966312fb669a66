import type { Adapter } from "../methods/adapter.ts";
import type { Decoder } from "../model/decoder.ts";
import { ModelCache } from "./model-cache.ts";

/**
 * What a model keeps of one prompt and the text after it, for later calls of `generate` whose prompt goes on with both, such as the
 * turns of a conversation: they are not read again. Held until `dispose()`, and forgotten where the prompt, the model, its prefix or
 * the adapter is another; call `dispose()` after training either.
 */
export class KeptText {
  #ids: readonly number[] = [];
  #caches: ModelCache | null = null;
  #owners: readonly unknown[] = [];

  /**
   * Caches for `capacity` positions at least, and how many tokens of a prompt they hold: all that was kept, if the prompt goes on
   * with it, else none, since a side network may keep a state of the whole text. @internal
   */
  take(
    decoder: Decoder,
    adapter: Adapter | null,
    promptIds: readonly number[],
    capacity: number,
  ): { caches: ModelCache; offset: number } {
    const owners = [decoder, adapter, decoder.prefixIds.join()];
    const isOwn = owners.every((owner, i) => owner === this.#owners[i]);
    const { length } = this.#ids;
    const isContinued = isOwn && length < promptIds.length && this.#ids.every((id, i) => id === promptIds[i]);
    const caches = this.#caches;
    if (isContinued && caches && caches.capacity >= capacity) {
      this.#caches = null;
      return { caches, offset: length };
    }
    this.dispose();
    this.#owners = owners;
    const roomy = Math.max(capacity, Math.min(2 * capacity, decoder.contextLimit)); // so that few texts outgrow it
    return { caches: ModelCache.empty(decoder, [adapter], 1, roomy), offset: 0 };
  }

  /** Takes back the caches, which hold these tokens. @internal */
  put(ids: readonly number[], caches: ModelCache): void {
    this.#ids = ids;
    this.#caches = caches;
  }

  /** Frees the caches. What is generated next is read from the beginning. */
  dispose(): void {
    this.#caches?.dispose();
    this.#caches = null;
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
