/** Models from the hub, in the cache folder that Python's libraries share (HF_HOME, HF_HUB_CACHE). */
import { createReadStream, existsSync } from "node:fs";
import { readFile, symlink } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { CONFIG, INDEX, isGgufPath, WEIGHTS } from "../formats/model-files.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { download, type HubEntry } from "./hub-download.ts";
import { type RetryOptions, reasonOf, retryingFetch, statusError } from "./hub-fetch.ts";
import { readJsonFile } from "./json-file.ts";
import { makeFolder } from "./make-folder.ts";

/** How models are fetched from the hub, and who is notified. */
export interface HubOptions {
  readonly revision?: string;
  /** Address of the hub; default HF_ENDPOINT, else the public one. */
  readonly endpoint?: string | undefined;
  /** Default HF_TOKEN. */
  readonly token?: string | undefined;
  /** Default HF_HUB_CACHE, else `hub` in HF_HOME. */
  readonly cacheDir?: string;
  /** Take what the cache has and ask nobody; default: whether HF_HUB_OFFLINE is 1. */
  readonly offline?: boolean;
  /** Download nothing but `config.json`: enough for planning. */
  readonly configOnly?: boolean;
  /** Called as a file comes. */
  readonly onProgress?: (file: string, doneBytes: number, totalBytes: number) => void;
  /** How failed requests are repeated. */
  readonly retry?: Partial<RetryOptions>;
}

const RETRY: RetryOptions = { attempts: 5, delayMs: 500, stallMs: 30_000 };

/** What is used of the hub's library, whose own types do not resolve under "NodeNext". */
interface HubLibrary {
  getHFHubCachePath(): string;
  modelInfo(request: object): Promise<{ sha?: string }>;
  listFiles(request: object): AsyncIterable<HubEntry>;
  fileDownloadInfo(request: object): Promise<{ url: string } | null>;
}

/** Plain names only: nothing of a listing leads out of the cache. */
const SMALL_FILES =
  /^(config|tokenizer|tokenizer_config|special_tokens_map|generation_config)\.json$|^chat_template\.jinja$/;
const SHARDS = /^model[\w.-]*\.safetensors(\.index\.json)?$/;

/** "organization/name", as the hub writes ids. */
export const isHubId = (text: string): boolean => /^[\w-][\w.-]*\/[\w-][\w.-]*$/.test(text);

function hubError(id: string, cause: unknown): SidenetError {
  if (cause instanceof SidenetError) {
    return new SidenetError(cause.code, `${id}: ${cause.text}`, { cause });
  }
  const { statusCode } = cause as { statusCode?: number };
  if (statusCode !== undefined) return statusError(`${id}: there is no such path, and`, statusCode);
  return new SidenetError(
    "L-HUB",
    `${id}: there is no such path, and the hub could not be reached (${reasonOf(cause)}). Check the network, or give --model a folder.`,
    { cause },
  );
}

/** Links the snapshot's name to the blob; a copy where links are not allowed. */
async function link(blobPath: string, pointer: string): Promise<void> {
  await makeFolder(dirname(pointer));
  try {
    await symlink(relative(dirname(pointer), blobPath), pointer);
  } catch {
    if (!existsSync(pointer)) await writeFileAtomic(pointer, createReadStream(blobPath));
  }
}

/** What a model needs of a listing: one file of weights where there is one, else all shards. */
async function wantedFiles(listing: AsyncIterable<HubEntry>, configOnly: boolean): Promise<HubEntry[]> {
  const files: HubEntry[] = [];
  for await (const entry of listing) {
    const etag = entry.lfs?.oid ?? entry.oid ?? "";
    if (entry.type === "file" && /^\w+$/.test(etag) && Number.isSafeInteger(entry.size)) files.push(entry);
  }
  const paths = files.map(({ path }) => path);
  const isWhole = paths.includes(WEIGHTS);
  const isWeights = (path: string) => (isWhole ? path === WEIGHTS : SHARDS.test(path));
  if (!paths.includes(CONFIG)) throw missingFile(CONFIG, paths);
  if (configOnly) return files.filter(({ path }) => path === CONFIG);
  if (!paths.some(isWeights)) throw missingFile(WEIGHTS, paths);
  return files.filter(({ path }) => SMALL_FILES.test(path) || isWeights(path));
}

function missingFile(wanted: string, paths: readonly string[]): SidenetError {
  const gguf = paths.find(isGgufPath);
  const others = gguf
    ? `but GGUF files such as ${gguf}. Download one and give its path to --model`
    : "which is needed. Choose a repository of the model in the safetensors format";
  return new SidenetError("L-HUB", `the repository has no ${wanted}, ${others}.`);
}

type Settings = HubOptions & { readonly retry: RetryOptions; readonly revision: string };

async function downloadSnapshot(
  id: string,
  hub: HubLibrary,
  folder: string,
  settings: Settings,
): Promise<string> {
  const { revision, endpoint, token, retry } = settings;
  const common = {
    fetch: retryingFetch(retry),
    ...(endpoint ? { hubUrl: endpoint.replace(/\/+$/, "") } : {}),
    ...(token ? { accessToken: token } : {}),
  };
  const { sha } = await hub.modelInfo({ ...common, name: id, revision, additionalFields: ["sha"] });
  if (!sha || !/^[\w-]+$/.test(sha)) {
    throw new SidenetError("L-HUB", `the hub gave no commit for "${revision}". Try again later.`);
  }
  const repo = { type: "model", name: id };
  const snapshot = join(folder, "snapshots", sha);
  await makeFolder(join(folder, "blobs"));
  const listing = hub.listFiles({ ...common, repo, revision: sha });
  for (const entry of await wantedFiles(listing, settings.configOnly ?? false)) {
    const pointer = join(snapshot, entry.path);
    if (existsSync(pointer)) continue;
    const target = join(folder, "blobs", entry.lfs?.oid ?? entry.oid!);
    if (!existsSync(target)) {
      const info = await hub.fileDownloadInfo({ ...common, repo, path: entry.path, revision: sha });
      if (!info)
        throw new SidenetError("L-HUB", `the hub lists ${entry.path}, but does not have it. Try again.`);
      await download({ url: info.url, token, entry, target, retry, onProgress: settings.onProgress });
    }
    await link(target, pointer);
  }
  const reference = join(folder, "refs", revision);
  await makeFolder(dirname(reference));
  await writeFileAtomic(reference, sha);
  return snapshot;
}

async function hasShards(snapshot: string): Promise<boolean> {
  const index = (await readJsonFile(join(snapshot, INDEX)).catch(() => null)) as {
    weight_map?: Record<string, unknown>;
  } | null;
  if (typeof index?.weight_map !== "object" || index.weight_map === null) return false;
  for (const name of new Set(Object.values(index.weight_map))) {
    if (typeof name !== "string" || !existsSync(join(snapshot, name))) return false;
  }
  return true;
}

/** The newest snapshot of a revision that is whole in the cache, or null. */
async function cachedSnapshot(folder: string, { revision, configOnly }: Settings): Promise<string | null> {
  const isCommit = /^[0-9a-f]{40}$/.test(revision);
  const sha = isCommit ? revision : await readFile(join(folder, "refs", revision), "utf8").catch(() => null);
  if (sha === null) return null;
  const snapshot = join(folder, "snapshots", sha.trim());
  if (!existsSync(join(snapshot, CONFIG))) return null;
  const isWhole = configOnly || existsSync(join(snapshot, WEIGHTS)) || (await hasShards(snapshot));
  return isWhole ? snapshot : null;
}

/**
 * Downloads the config, tokenizer and safetensors weights of a model, unless they are in the cache, and gives the folder.
 * Without an answer from the hub the snapshot in the cache is used, if it is whole; a commit that is whole there is not asked
 * for. Throws `L-HUB`.
 */
export async function downloadModel(id: string, options: HubOptions): Promise<string> {
  const hub = (await import("@huggingface/hub")) as unknown as HubLibrary;
  const { HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE } = process.env;
  const revision = options.revision ?? "main";
  if (!/^[\w.-]+(\/[\w.-]+)*$/.test(revision) || revision.split("/").includes("..")) {
    throw new SidenetError("L-HUB", `${id}: "${revision}" is no branch, tag or commit. Check the revision.`);
  }
  const defaults = { endpoint: HF_ENDPOINT, token: HF_TOKEN, offline: HF_HUB_OFFLINE === "1" };
  const given = { ...defaults, ...options, revision };
  const folder = join(given.cacheDir ?? hub.getHFHubCachePath(), `models--${id.replaceAll("/", "--")}`);
  const whole = { ...given, retry: { ...RETRY, ...options.retry } };
  const cached = await cachedSnapshot(folder, whole);
  if (cached !== null && (given.offline || cached.endsWith(revision))) return cached;
  if (given.offline) {
    throw new SidenetError(
      "L-HUB",
      `${id}: the cache (${folder}) does not have it, and HF_HUB_OFFLINE forbids to ask. Unset it once, or give --model a folder.`,
    );
  }
  // With something to fall back on, a hub that does not answer is not waited for.
  const retry =
    cached === null
      ? whole.retry
      : { ...whole.retry, attempts: 1, stallMs: Math.min(whole.retry.stallMs, 10_000) };
  try {
    return await downloadSnapshot(id, hub, folder, { ...whole, retry });
  } catch (cause) {
    if (cached !== null) return cached;
    throw hubError(id, cause);
  }
}
