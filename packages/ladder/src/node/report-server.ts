/** Serves the page of a running run to this machine only. */
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { SidenetError } from "@sidenet/tensor";
import { readReportData, renderReport } from "./report.ts";

/** A server of a report on the loopback address. */
export interface ReportServer {
  readonly url: string;
  /** Ends it, and the connections it has. */
  close(): Promise<void>;
}

/** Names of this machine: a page of another name that leads here is refused. */
const LOCAL = /^(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/;

const POLICY =
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";

async function answer(folder: string, url: string): Promise<{ type: string; body: string } | null> {
  const [path] = url.split("?"); // the class URL throws for some that a client may send
  if (path === "/") {
    return { type: "text/html; charset=utf-8", body: await renderReport(await readReportData(folder), true) };
  }
  if (path !== "/data.json") return null;
  return {
    type: "application/json",
    body: JSON.stringify({ ...(await readReportData(folder)), live: true }),
  };
}

function listen(server: Server, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (cause: NodeJS.ErrnoException) => {
      const why = cause.code === "EADDRINUSE" ? "it is in use" : cause.message;
      const message = `cannot listen on port ${port} of this machine: ${why}. Give another --port.`;
      reject(new SidenetError("L-PORT", message, { cause }));
    });
    server.listen(port, "127.0.0.1", resolve);
  });
}

/** Serves the report of a folder on the loopback address; port 0 takes any that is free. Throws `L-REPORT`, `L-PORT`. */
export async function serveReport(folder: string, port: number): Promise<ReportServer> {
  await readReportData(folder);
  const server = createServer((request, response) => {
    const send = (status: number, type: string, body: string) => {
      response.writeHead(status, {
        "content-type": type,
        "content-security-policy": POLICY,
        "cache-control": "no-store",
      });
      response.end(body);
    };
    if (!LOCAL.test(request.headers.host ?? "")) return send(403, "text/plain", "only for this machine");
    answer(folder, request.url ?? "/").then(
      (found) =>
        found ? send(200, found.type, found.body) : send(404, "text/plain", "there is no such page"),
      (error: unknown) => send(500, "text/plain", error instanceof Error ? error.message : String(error)),
    );
  });
  await listen(server, port);
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
