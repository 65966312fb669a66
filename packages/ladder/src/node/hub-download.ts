/** One file of the hub into the cache: resumed where it stopped, and under its name only when it is right. */
import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, open, readdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { fileError, writeFully } from "./file-source.ts";
import {
  fetchOnce,
  type RetryOptions,
  reasonOf,
  statusError,
  TransientError,
  withRetries,
} from "./hub-fetch.ts";
import { isOtherProcess } from "./other-process.ts";

/** A file in the listing of a repository; `lfs.oid` is the SHA-256 of its content, `oid` git's hash of a small file. */
export interface HubEntry {
  readonly type: string;
  readonly path: string;
  readonly size: number;
  readonly oid?: string;
  readonly lfs?: { readonly oid: string };
}

interface Download {
  readonly url: string;
  readonly token: string | undefined;
  readonly entry: HubEntry;
  /** In the cache. */
  readonly target: string;
  readonly retry: RetryOptions;
  readonly onProgress?: ((file: string, doneBytes: number, totalBytes: number) => void) | undefined;
}

/** Hash of a file's content as its listing has it. */
function hashOf({ lfs, size }: HubEntry): Hash {
  return lfs ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
}

const partName = (target: string): string => `${target}.${process.pid}.incomplete`;

/** Takes over what an earlier process left of this file; each living process has a file of its own. */
async function adoptPart(target: string): Promise<void> {
  const prefix = `${basename(target)}.`;
  for (const name of await readdir(dirname(target))) {
    const pid = name.startsWith(prefix)
      ? /^(\d+)\.incomplete$/.exec(name.slice(prefix.length))?.[1]
      : undefined;
    if (pid === undefined || Number(pid) === process.pid || isOtherProcess(Number(pid))) continue;
    await rename(join(dirname(target), name), partName(target)).catch(() => {}); // somebody else was faster
    return;
  }
}

/** A part of a file on disk, and the hash of what it holds. */
interface Part {
  readonly file: FileHandle;
  hash: Hash;
  bytes: number;
}

async function openPart(path: string, entry: HubEntry): Promise<Part> {
  const hash = hashOf(entry);
  const size = await stat(path).then(
    (stats) => stats.size,
    () => 0,
  );
  const isUsable = size > 0 && size <= entry.size;
  if (isUsable) for await (const chunk of createReadStream(path)) hash.update(chunk);
  return { file: await open(path, isUsable ? "r+" : "w"), hash, bytes: isUsable ? size : 0 };
}

async function startOver(part: Part, entry: HubEntry): Promise<void> {
  await part.file.truncate(0);
  part.hash = hashOf(entry);
  part.bytes = 0;
}

/** Chunks of a body; throws `TransientError` when it breaks off, or brings nothing for `stallMs`. */
async function* chunksOf(body: ReadableStream<Uint8Array>, stallMs: number): AsyncGenerator<Uint8Array> {
  const reader = body.getReader();
  try {
    for (;;) {
      let timer: NodeJS.Timeout | undefined;
      const stall = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`nothing came for ${stallMs / 1000} s`)), stallMs);
      });
      const { done, value } = await Promise.race([reader.read(), stall]).finally(() => clearTimeout(timer));
      if (done) return;
      yield value;
    }
  } catch (cause) {
    throw new TransientError(reasonOf(cause), null, { cause });
  } finally {
    await reader.cancel().catch(() => {}); // it may be broken by then
  }
}

/** Asks for the bytes that are missing, and appends what comes. */
async function requestRest(request: Download, part: Part, progress: () => void): Promise<void> {
  const { url, token, entry, retry } = request;
  const headers: Record<string, string> = { "accept-encoding": "identity" };
  if (token) headers.authorization = `Bearer ${token}`; // fetch drops it where it is sent on to another host
  if (part.bytes > 0) headers.range = `bytes=${part.bytes}-`;
  // The stall of the body is watched chunk by chunk: a signal would end a long download.
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(new Error("no answer came")), retry.stallMs);
  const response = await fetchOnce(url, { headers, signal: abort.signal }).finally(() => clearTimeout(timer));
  const start = /^bytes (\d+)-/.exec(response.headers.get("content-range") ?? "")?.[1];
  if (response.status === 416 || (response.status === 206 && Number(start) !== part.bytes)) {
    await response.body?.cancel();
    await startOver(part, entry);
    throw new TransientError("the server could not go on where the file stopped");
  }
  if (!response.ok || !response.body) throw statusError(entry.path, response.status);
  if (response.status !== 206) await startOver(part, entry); // the whole file comes
  for await (const chunk of chunksOf(response.body, retry.stallMs)) {
    if (part.bytes + chunk.length > entry.size) {
      throw new SidenetError(
        "L-HUB",
        `${entry.path}: more than the ${entry.size} bytes of the listing came. Try again later.`,
      );
    }
    await writeFully(part.file, chunk, part.bytes);
    part.hash.update(chunk);
    part.bytes += chunk.length;
    progress();
    request.onProgress?.(entry.path, part.bytes, entry.size);
  }
  if (part.bytes < entry.size)
    throw new TransientError(`the connection ended after ${part.bytes} of ${entry.size} bytes`);
}

/** The downloads of this process that are going on, by target. */
const running = new Map<string, Promise<void>>();

/**
 * Downloads a file to `target`, which appears only when size and hash are those of the listing. What came before a failure
 * stays beside it and is gone on with the next time, also by another process. Calls for one target share a download.
 * Throws `L-HUB`, `L-FILE`, `L-DISK-FULL`, and `TransientError` when the network failed again and again.
 */
export async function download(request: Download): Promise<void> {
  const { target } = request;
  const own = running.get(target) ?? fetchInto(request).finally(() => running.delete(target));
  running.set(target, own);
  try {
    await own;
  } catch (cause) {
    if (cause instanceof SidenetError || cause instanceof TransientError) throw cause;
    throw fileError(request.target, cause);
  }
}

async function fetchInto(request: Download): Promise<void> {
  const { entry, target } = request;
  await adoptPart(target);
  const path = partName(target);
  const part = await openPart(path, entry);
  let keep = true;
  try {
    let resumed = part.bytes > 0;
    for (;;) {
      if (part.bytes < entry.size || entry.size === 0)
        await withRetries(request.retry, (progress) => requestRest(request, part, progress));
      const digest = part.hash.digest("hex");
      if (digest === (entry.lfs?.oid ?? entry.oid)) break;
      if (!resumed) {
        keep = false;
        throw new SidenetError(
          "L-HUB",
          `${entry.path}: its ${part.bytes} bytes have the hash ${digest}, but the hub lists ${entry.lfs?.oid ?? entry.oid}. ` +
            "Nothing of it was kept; try again.",
        );
      }
      resumed = false; // what was left from before may be what is wrong
      await startOver(part, entry);
    }
    await part.file.sync();
    await rename(path, target);
  } finally {
    await part.file.close();
    if (!keep) await rm(path, { force: true });
  }
}
