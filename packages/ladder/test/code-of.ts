import { SidenetError } from "@sidenet/tensor";

/** The `SidenetError` that a promise is rejected with; throws for any other outcome. */
export async function errorOf(promise: Promise<unknown>): Promise<SidenetError> {
  const error = await promise.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  if (error instanceof SidenetError) return error;
  throw new Error(`wanted a SidenetError, got ${String(error)}`, { cause: error });
}

/** Its code. */
export const codeOf = async (promise: Promise<unknown>): Promise<string> => (await errorOf(promise)).code;
