/** A small server that speaks the hub's file protocol, and fails as networks and hubs do when told to. */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export const SHA = "0123456789abcdef0123456789abcdef01234567";

/** What happens to the next request for a file's content; after the last one all goes well. */
export type Fault =
  | { readonly kind: "drop"; readonly afterBytes: number }
  | { readonly kind: "stall"; readonly afterBytes: number }
  | { readonly kind: "status"; readonly status: number; readonly retryAfter?: string }
  | { readonly kind: "ignore range" | "wrong range" | "other bytes" | "more bytes" }
  | { readonly kind: "redirect"; readonly to: string };

interface Asked {
  readonly path: string;
  readonly range: string | undefined;
  readonly authorization: string | undefined;
}

const gitHash = (bytes: Buffer): string =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
export const sha256 = (content: string | Uint8Array): string =>
  createHash("sha256").update(content).digest("hex");

export class FakeHub {
  readonly files: Record<string, string | Uint8Array>;
  /** By path of a file, or "api". */
  readonly faults = new Map<string, Fault[]>();
  asked: Asked[] = [];
  /** A request for anything needs this token. */
  token: string | null = null;
  /** Fields of the listing that are wrong. */
  listed: Record<string, { oid?: string; path?: string }> = {};
  endpoint = "";
  readonly #server: Server;

  constructor(files: Record<string, string | Uint8Array>) {
    this.files = files;
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  async start(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.endpoint = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
    return this;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  /** Requests for a file's content, without the library's look at its size. */
  downloadsOf(file: string): Asked[] {
    return this.asked.filter(({ path, range }) => path.endsWith(`/${file}`) && range !== "bytes=0-0");
  }

  #listing(): object[] {
    return Object.entries(this.files).map(([path, content]) => {
      const bytes = Buffer.from(content as string);
      const lfs = path.endsWith(".safetensors")
        ? { lfs: { oid: this.listed[path]?.oid ?? sha256(bytes), size: bytes.length, pointerSize: 100 } }
        : {};
      const oid = this.listed[path]?.oid ?? gitHash(bytes);
      return { type: "file", path: this.listed[path]?.path ?? path, size: bytes.length, oid, ...lfs };
    });
  }

  #answer(request: IncomingMessage, response: ServerResponse): unknown {
    const path = decodeURIComponent(new URL(request.url ?? "", "http://hub").pathname);
    const { range, authorization } = request.headers;
    this.asked.push({ path, range, authorization });
    const isCdn = path.startsWith("/cdn/");
    if (this.token !== null && !isCdn && authorization !== `Bearer ${this.token}`) return end(response, 401);
    const json = (value: unknown) =>
      response.setHeader("content-type", "application/json").end(JSON.stringify(value));
    const file = isCdn ? path.slice("/cdn/".length) : path.slice(`/org/tiny/resolve/${SHA}/`.length);
    const isContent = isCdn || path.startsWith("/org/tiny/resolve/");
    const fault = range === "bytes=0-0" ? undefined : this.faults.get(isContent ? file : "api")?.shift();
    if (fault?.kind === "status") {
      if (fault.retryAfter !== undefined) response.setHeader("retry-after", fault.retryAfter);
      return end(response, fault.status);
    }
    if (path === "/api/models/org/tiny/revision/main") return json({ _id: "1", id: "org/tiny", sha: SHA });
    if (path === `/api/models/org/tiny/revision/${SHA}`) return json({ _id: "1", id: "org/tiny", sha: SHA });
    if (path === `/api/models/org/tiny/tree/${SHA}`) return json(this.#listing());
    const content = isContent ? this.files[file] : undefined;
    if (content === undefined) return end(response, 404);
    if (fault?.kind === "redirect") {
      return response.writeHead(302, { location: `${fault.to}/cdn/${file}` }).end();
    }
    return send(response, Buffer.from(content as string), range, fault);
  }
}

const end = (response: ServerResponse, status: number): unknown => response.writeHead(status).end("{}");

function send(response: ServerResponse, bytes: Buffer, range: string | undefined, fault?: Fault): unknown {
  response.setHeader("etag", '"tag"');
  let body = fault?.kind === "other bytes" ? Buffer.from(bytes.map((byte) => byte ^ 1)) : bytes;
  if (fault?.kind === "more bytes") body = Buffer.concat([bytes, bytes]);
  const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(range ?? "") ?? [];
  if (from !== undefined && fault?.kind !== "ignore range") {
    if (Number(from) >= body.length) return end(response, 416);
    const first = Number(from) + (fault?.kind === "wrong range" ? 1 : 0);
    const last = to ? Math.min(Number(to), body.length - 1) : body.length - 1;
    response.writeHead(206, { "content-range": `bytes ${first}-${last}/${body.length}` });
    body = body.subarray(first, last + 1);
  } else response.setHeader("content-length", body.length);
  if (fault?.kind === "drop" || fault?.kind === "stall") {
    return response.write(body.subarray(0, fault.afterBytes), () => {
      if (fault.kind === "drop") setTimeout(() => response.destroy(), 100); // what was written is read first
    });
  }
  return response.end(body);
}
