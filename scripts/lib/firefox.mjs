// Test pages in a headless Firefox, whose WebGPU (wgpu) and WGSL compiler (naga) are others than Chromium's and Node's. It needs no
// program that drives it: the page sends back what it has computed.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensureFirefox } from "./browsers.mjs";
import { servePage } from "./test-page.mjs";

/** Switch WebGPU on, which Firefox disables on Linux, with the system's software driver; and nothing that asks the network. */
const PREFERENCES = {
  "dom.webgpu.enabled": true,
  "gfx.webgpu.ignore-blocklist": true,
  "app.update.enabled": false,
  "browser.shell.checkDefaultBrowser": false,
  "datareporting.policy.dataSubmissionEnabled": false,
  "network.captive-portal-service.enabled": false,
  "network.connectivity-service.enabled": false,
  "toolkit.telemetry.enabled": false,
};

/**
 * Runs a function that the module `entry` (a file URL) exports in a page of its own Firefox, and returns a copy of its result.
 * Throws what the page throws, an error after `timeout` milliseconds, and `SetupError` if there is no Firefox.
 *
 * @param {URL} entry
 * @param {string} name
 * @param {unknown} argument
 */
export async function callInFirefox(entry, name, argument = null, { timeout = 100_000 } = {}) {
  const path = ensureFirefox(false);
  const profile = mkdtempSync(join(tmpdir(), "sidenet-firefox-"));
  const preferences = Object.entries(PREFERENCES).map(([key, value]) => `user_pref("${key}", ${value});\n`);
  writeFileSync(join(profile, "user.js"), preferences.join(""));
  let answer;
  const answered = new Promise((resolve) => {
    answer = resolve;
  });
  const script = `let answer;
  try {
    const page = await import("./page.js");
    answer = { result: await page[${JSON.stringify(name)}](${JSON.stringify(argument)}) };
  } catch (error) {
    answer = { error: String(error?.stack ?? error) };
  }
  await fetch("./", { method: "POST", body: JSON.stringify(answer) });`;
  const served = await servePage(entry, script, { posted: (text) => answer(JSON.parse(text)) });
  const browser = spawn(path, ["--headless", "--no-remote", "--profile", profile, served.url], {
    stdio: "ignore",
  });
  const ended = new Promise((resolve) => browser.once("close", resolve));
  browser.once("error", ({ message }) => answer({ error: message }));
  ended.then((code) => answer({ error: `Firefox ended with code ${code}` }));
  const timer = setTimeout(() => answer({ error: `no answer within ${timeout / 1000} s` }), timeout);
  try {
    const { result, error } = await answered;
    if (error !== undefined) throw new Error(`${name} in Firefox: ${error}`);
    return result;
  } finally {
    clearTimeout(timer);
    browser.kill();
    await ended;
    served.close();
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 }); // its processes may still write
  }
}
