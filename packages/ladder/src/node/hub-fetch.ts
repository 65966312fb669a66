/** Requests to the hub that survive what networks do: dropped connections, stalls, busy servers. */
import { setTimeout } from "node:timers/promises";
import { SidenetError } from "@sidenet/tensor";

/** How often a request is made again, and how long is waited before. */
export interface RetryOptions {
  /** Attempts before giving up; attempts that made progress do not count. */
  readonly attempts: number;
  /** Pause after the first failure; it doubles with each further one. */
  readonly delayMs: number;
  /** A connection that brings nothing for this long is dropped. */
  readonly stallMs: number;
}

/** Longest pause that a server's Retry-After is obeyed for. */
const MAX_PAUSE_MS = 60_000;

const BUSY = new Set([408, 429, 500, 502, 503, 504]);

/** A request that may succeed when it is repeated. */
export class TransientError extends Error {
  readonly retryAfterMs: number | null;

  constructor(message: string, retryAfterMs: number | null = null, options?: ErrorOptions) {
    super(message, options);
    this.name = "TransientError";
    this.retryAfterMs = retryAfterMs;
  }
}

function retryAfterOf(response: Response): number | null {
  const header = response.headers.get("retry-after");
  if (header === null) return null;
  const seconds = Number(header);
  const ms = Number.isFinite(seconds) ? 1000 * seconds : Date.parse(header) - Date.now();
  return Number.isFinite(ms) ? Math.min(Math.max(ms, 0), MAX_PAUSE_MS) : null;
}

/** The message of an `Error` of Node's fetch, with its cause, which holds the reason. */
export function reasonOf(error: unknown): string {
  const { cause, message } = error as { cause?: unknown; message?: string };
  return cause instanceof Error
    ? `${message}: ${cause.message || (cause as NodeJS.ErrnoException).code}`
    : String(message);
}

/** Throws `TransientError` where the server is busy; other answers are the caller's to judge. */
export async function fetchOnce(url: string | URL | Request, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, init);
  } catch (cause) {
    throw new TransientError(reasonOf(cause), null, { cause });
  }
  if (!BUSY.has(response.status)) return response;
  await response.body?.cancel();
  throw new TransientError(`the server answered ${response.status}`, retryAfterOf(response));
}

/** Runs `attempt` until it succeeds, with pauses, as long as its errors are transient. `attempt` calls `progress` when it has made some. */
export async function withRetries<T>(
  { attempts, delayMs }: RetryOptions,
  attempt: (progress: () => void) => Promise<T>,
): Promise<T> {
  let failures = 0;
  for (;;) {
    let gotOn = false;
    try {
      return await attempt(() => {
        gotOn = true;
      });
    } catch (error) {
      if (!(error instanceof TransientError)) throw error;
      failures = gotOn ? 1 : failures + 1;
      if (failures >= attempts) throw error;
      const pause = error.retryAfterMs ?? Math.min(delayMs * 2 ** (failures - 1), MAX_PAUSE_MS);
      await setTimeout(pause);
    }
  }
}

/** A `fetch` for the hub's library, for its small answers. */
export const retryingFetch =
  (options: RetryOptions): typeof fetch =>
  (url, init) =>
    withRetries(options, () => fetchOnce(url, { ...init, signal: AbortSignal.timeout(options.stallMs) }));

/** The error for an answer that repeating does not change. */
export function statusError(what: string, status: number): SidenetError {
  const denied = status === 401 || status === 403 || status === 404;
  return new SidenetError(
    "L-HUB",
    denied
      ? `${what}: the hub does not have it, or not for you (${status}). Check the name, or set HF_TOKEN for a gated model.`
      : `${what}: the hub answered ${status}. Try again later.`,
  );
}
