// Builds and serves the playground, and drives it as a user would.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import type { Browser, Page } from "playwright-core";
import { build, defaultClientConditions, type PreviewServer, preview } from "vite";
import { temporaryFolder } from "../../../scripts/test-folder.ts";

const root = fileURLToPath(new URL("..", import.meta.url));

export interface Site {
  readonly url: string;
  close(): Promise<void>;
}

/** Builds the page from the packages' sources, and serves it with the headers of `vite preview` and further ones. */
export async function openSite(headers: Readonly<Record<string, string>> = {}): Promise<Site> {
  const outDir = temporaryFolder();
  const shared = { root, logLevel: "warn" } as const;
  await build({
    ...shared,
    resolve: { conditions: ["source", ...defaultClientConditions] },
    build: { outDir, emptyOutDir: true, minify: false },
  });
  const server: PreviewServer = await preview({
    ...shared,
    preview: { host: "127.0.0.1", port: 0, headers },
    build: { outDir },
  });
  return {
    url: server.resolvedUrls!.local[0],
    close: () => server.close(),
  };
}

/** A server of another origin, and the requests that it received. */
export async function openElsewhere(): Promise<{ url: string; asked: string[]; close(): void }> {
  const asked: string[] = [];
  const server = createServer(({ url }, response) => {
    asked.push(url ?? "");
    response.writeHead(200, {
      "Access-Control-Allow-Origin": "*",
      "Cross-Origin-Resource-Policy": "cross-origin",
    });
    response.end("here");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}/`, asked, close: () => void server.close() };
}

/** The settings of a run that differ from the page's defaults. */
interface Choices {
  readonly method?: "ladder" | "qlora";
  readonly text?: "plays" | "sonnets" | "own";
  readonly fields?: Readonly<Record<string, string | number>>;
}

/** An open page of the playground, with its requests and errors. */
export class Visit {
  readonly page: Page;
  readonly requests: string[] = [];
  readonly errors: string[] = [];

  private constructor(page: Page) {
    this.page = page;
    page.on("request", (request) => void this.requests.push(request.url()));
    page.on("pageerror", (error) => void this.errors.push(error.message));
    page.on("console", (message) => {
      if (message.type() === "error") this.errors.push(message.text());
    });
  }

  static async open(browser: Browser, { url }: Site, options = {}): Promise<Visit> {
    const page = await browser.newPage(options);
    page.setDefaultTimeout(100_000);
    const visit = new Visit(page);
    await visit.page.goto(url);
    await visit.idle();
    return visit;
  }

  text(id: string): Promise<string> {
    return this.page.locator(`#${id}`).innerText();
  }

  idle(): Promise<void> {
    return this.page.locator('body[data-task="idle"]').waitFor();
  }

  /** Runs a script in the worker that computes. */
  inWorker<T>(script: string): Promise<T> {
    return this.page.workers()[0].evaluate(script);
  }

  async chooseDevice(name: string): Promise<void> {
    await this.more();
    await this.asks(() => this.page.locator("#device-choice").selectOption(name));
    await this.idle();
  }

  /** Opens the collapsed part of the settings. */
  async more(): Promise<void> {
    await this.page.locator("#settings details").evaluate((details) => details.setAttribute("open", ""));
  }

  async choose({ method, text, fields = {} }: Choices): Promise<void> {
    await this.more();
    if (method) await this.page.locator(`input[name="method"][value="${method}"]`).check();
    if (text) await this.page.locator(`input[name="text"][value="${text}"]`).check();
    for (const [id, value] of Object.entries(fields)) await this.page.locator(`#${id}`).fill(String(value));
  }

  /** Performs an action that makes the page send the worker a request, and waits until it is sent. */
  async asks(act: () => Promise<unknown>): Promise<void> {
    const asked = Number(await this.page.locator("body").getAttribute("data-asked"));
    await act();
    await this.page.locator(`body[data-asked="${asked + 1}"]`).waitFor();
  }

  async start(choices: Choices = {}): Promise<void> {
    await this.choose(choices);
    await this.asks(() => this.page.locator("#train").click());
  }

  /** Trains a whole run. Throws the error that the page shows. */
  async run(choices: Choices): Promise<{ before: number; after: number }> {
    await this.start(choices);
    await this.idle();
    const problem = this.page.locator("#problem");
    if (await problem.isVisible()) throw new Error(await problem.innerText());
    const [before, after] = (await this.text("tile-loss")).split(" → ").map(Number);
    return { before, after };
  }

  /** The bytes of a download link. */
  async saved(name: string): Promise<Buffer> {
    const saving = this.page.waitForEvent("download");
    await this.page.locator(`#runs a[download="${name}"]`).first().click();
    return readFile(await (await saving).path());
  }

  /** The bytes of a category at the peak, as the page shows them. */
  async peakBytes(category: string): Promise<number> {
    const item = this.page.locator("#memory-key li", { hasText: category });
    return Number(await item.getAttribute("data-bytes"));
  }

  close(): Promise<void> {
    return this.page.close();
  }
}
