import { SidenetError } from "@sidenet/tensor";

/** The code of the `SidenetError` that a promise is rejected with; throws for any other outcome. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  if (error instanceof SidenetError) return error.code;
  throw new Error(`wanted a SidenetError, got ${String(error)}`);
}
