// `sidenet watch`: whatever is asked of the server, it answers, and goes on.
import { request } from "node:http";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { type ReportServer, serveReport } from "../src/node/report-server.ts";
import { trainRun } from "../src/node/train-run.ts";
import { cpu, tinyOptions, writeTinyFiles } from "./tiny-run.ts";

let server: ReportServer;
beforeAll(async () => {
  const run = temporaryFolder();
  const files = await writeTinyFiles(temporaryFolder());
  await trainRun(cpu(), tinyOptions(files, run, "ladder", { steps: 1 }));
  server = await serveReport(run, 0);
});
afterAll(() => server.close());

/** Asks for a path as it stands; `fetch` would write it in another way. */
const ask = (path: string, host = "localhost") =>
  new Promise<{ status?: number | undefined; body: string }>((resolve, reject) => {
    request(server.url, { path, headers: { host } }, async (response) =>
      resolve({ status: response.statusCode, body: await text(response) }),
    )
      .on("error", reject)
      .end();
  });

it.each([
  ["/", 200, "<!doctype html>"],
  ["/?theme=dark", 200, "<!doctype html>"],
  ["/data.json", 200, '"live":true'],
  ["/../run.json", 404, "no such page"],
  ["//", 404, "no such page"],
  ["//[", 404, "no such page"],
])("%s is answered with %d", async (path, status, body) => {
  const answer = await ask(path);
  expect(answer.status).toBe(status);
  expect(answer.body).toContain(body);
});

it("a page of another name is refused", async () => {
  expect(await ask("/data.json", "example.com")).toMatchObject({ status: 403 });
});
