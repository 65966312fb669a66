/** Models from the hub, in the cache folder that Python's libraries share (HF_HOME, HF_HUB_CACHE). */
import { createHash, randomUUID } from "node:crypto";
import { copyFile, mkdir, open, readFile, rename, rm, stat, symlink, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { SidenetError } from "@sidenet/tensor";

export interface HubOptions {
  readonly revision?: string;
  /** Address of the hub; default HF_ENDPOINT, else the public one. */
  readonly endpoint?: string | undefined;
  /** Default HF_TOKEN. */
  readonly token?: string | undefined;
  /** Default HF_HUB_CACHE, else `hub` in HF_HOME. */
  readonly cacheDir?: string;
  /** Download nothing but `config.json`: enough for planning. */
  readonly configOnly?: boolean;
  readonly onProgress?: (file: string, doneBytes: number, totalBytes: number) => void;
}

/** A file in the listing of a repository; `lfs.oid` is the SHA-256 of its content. */
interface Entry {
  readonly type: string;
  readonly path: string;
  readonly size: number;
  readonly oid?: string;
  readonly lfs?: { readonly oid: string };
}

/** What is used of the hub's library, whose own types do not resolve under "NodeNext". */
interface HubLibrary {
  getHFHubCachePath(): string;
  modelInfo(request: object): Promise<{ sha?: string }>;
  listFiles(request: object): AsyncIterable<Entry>;
  downloadFile(request: object): Promise<Blob | null>;
}

const MODEL_FILES =
  /^(config\.json|tokenizer\.json|tokenizer_config\.json|model[\w.-]*\.safetensors(\.index\.json)?)$/;

/** "organization/name", as the hub writes ids. */
export const isHubId = (text: string): boolean => /^[\w-][\w.-]*\/[\w-][\w.-]*$/.test(text);

function hubError(id: string, cause: unknown): SidenetError {
  if (cause instanceof SidenetError) return cause;
  const { statusCode, message } = cause as { statusCode?: number; message?: string };
  const text =
    statusCode === 401 || statusCode === 403 || statusCode === 404
      ? `the hub has no model of this name, or not for you (${statusCode}). Check the name, or set HF_TOKEN for a gated one`
      : `the hub could not be used (${message ?? "no answer"}). Check the network, or give --model a folder`;
  return new SidenetError("L-HUB", `${id}: there is no such path, and ${text}.`, { cause });
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/** Streams a file to `target`, which appears only when its size and hash are right. */
async function download(
  blob: Blob,
  entry: Entry,
  target: string,
  onProgress: HubOptions["onProgress"],
): Promise<void> {
  const temporary = `${target}.${randomUUID()}.incomplete`;
  const hash = createHash("sha256");
  try {
    const file = await open(temporary, "wx");
    let done = 0;
    try {
      for await (const chunk of blob.stream() as unknown as AsyncIterable<Uint8Array>) {
        await file.writeFile(chunk);
        hash.update(chunk);
        done += chunk.length;
        onProgress?.(entry.path, done, entry.size);
      }
      await file.sync();
    } finally {
      await file.close();
    }
    if (done !== entry.size || (entry.lfs && hash.digest("hex") !== entry.lfs.oid)) {
      throw new SidenetError(
        "L-HUB",
        `${entry.path}: ${done} bytes came that are not the ${entry.size} of the listing. Try again.`,
      );
    }
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/** Links the snapshot's name to the blob; a copy where links are not allowed. */
async function link(blobPath: string, pointer: string): Promise<void> {
  await mkdir(dirname(pointer), { recursive: true });
  try {
    await symlink(relative(dirname(pointer), blobPath), pointer);
  } catch {
    if (!(await exists(pointer))) await copyFile(blobPath, pointer);
  }
}

async function downloadSnapshot(
  id: string,
  hub: HubLibrary,
  folder: string,
  options: HubOptions,
): Promise<string> {
  const { revision = "main", endpoint, token, onProgress } = options;
  const common = { ...(endpoint ? { hubUrl: endpoint } : {}), ...(token ? { accessToken: token } : {}) };
  const { sha } = await hub.modelInfo({ ...common, name: id, revision, additionalFields: ["sha"] });
  if (!sha || !/^[\w-]+$/.test(sha)) {
    throw new SidenetError("L-HUB", `${id}: the hub gave no commit for "${revision}". Try again later.`);
  }
  const repo = { type: "model", name: id };
  const wanted = options.configOnly ? /^config\.json$/ : MODEL_FILES;
  const snapshot = join(folder, "snapshots", sha);
  await mkdir(join(folder, "blobs"), { recursive: true });
  for await (const entry of hub.listFiles({ ...common, repo, revision: sha })) {
    const etag = entry.lfs?.oid ?? entry.oid ?? "";
    const pointer = join(snapshot, entry.path);
    if (entry.type !== "file" || !wanted.test(entry.path) || !/^\w+$/.test(etag) || (await exists(pointer)))
      continue;
    const blobPath = join(folder, "blobs", etag);
    if (!(await exists(blobPath))) {
      const blob = await hub.downloadFile({ ...common, repo, path: entry.path, revision: sha });
      if (!blob)
        throw new SidenetError(
          "L-HUB",
          `${id}: the hub lists ${entry.path}, but does not have it. Try again.`,
        );
      await download(blob, entry, blobPath, onProgress);
    }
    await link(blobPath, pointer);
  }
  const reference = join(folder, "refs", revision);
  await mkdir(dirname(reference), { recursive: true });
  await writeFile(reference, sha);
  return snapshot;
}

/**
 * Downloads the config, tokenizer and safetensors weights of a model, unless they are in the cache, and gives the folder.
 * Without an answer from the hub the last snapshot in the cache is used. Throws `L-HUB`.
 */
export async function downloadModel(id: string, options: HubOptions = {}): Promise<string> {
  const hub = (await import("@huggingface/hub")) as unknown as HubLibrary;
  const { HF_ENDPOINT, HF_TOKEN } = process.env;
  const settings = { endpoint: HF_ENDPOINT, token: HF_TOKEN, ...options };
  const folder = join(settings.cacheDir ?? hub.getHFHubCachePath(), `models--${id.replaceAll("/", "--")}`);
  try {
    return await downloadSnapshot(id, hub, folder, settings);
  } catch (cause) {
    const error = hubError(id, cause);
    const sha = await readFile(join(folder, "refs", settings.revision ?? "main"), "utf8").catch(() => null);
    const cached = sha === null ? null : join(folder, "snapshots", sha.trim());
    if (cached !== null && (await exists(cached))) return cached;
    throw error;
  }
}
