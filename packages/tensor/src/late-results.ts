/** Results that arrive after the calls they are about. An error among them is thrown once, but to every wait that it concerns. */
export class LateResults {
  readonly #pending = new Set<Promise<unknown>>();
  /** Shared by the waits that began since an error was thrown last. */
  #flight: { error: unknown } = { error: null };

  /** Waits wait for `result` from now on; one throws the error that it rejects with. */
  add(result: Promise<unknown>): void {
    this.#pending.add(result);
    result.then(
      () => this.#pending.delete(result),
      () => {}, // stays pending until a wait has thrown the error
    );
  }

  /** Throws an error, in all waits in flight too. */
  throw(error: unknown): never {
    this.#flight.error = error;
    this.#flight = { error: null };
    throw error;
  }

  /**
   * Begins a wait. What it returns ends it: waits for all results, and throws the error that was thrown since the beginning, by
   * whomever, or that `check` throws.
   */
  begin(check: () => void): () => Promise<void> {
    const flight = this.#flight;
    return async () => {
      const results = [...this.#pending];
      try {
        await Promise.all(results);
      } catch (error) {
        for (const result of results) this.#pending.delete(result);
        if (flight.error === null) this.throw(error);
      }
      if (flight.error !== null) throw flight.error;
      check();
    };
  }
}
