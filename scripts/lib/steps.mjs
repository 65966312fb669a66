// How the set-up scripts run commands, speak and fail.

import { spawnSync } from "node:child_process";

/** A step failed: what was tried, why it did not work, and the lines a person can run instead. */
export class SetupError extends Error {
  constructor(what, why, lines = []) {
    const cure = lines.length === 0 ? "" : `\n\nTo do it by hand:\n\n${indent(lines.join("\n"))}`;
    super(`${what}\n${indent(why.trim())}${cure}`);
    this.name = "SetupError";
  }
}

/** Progress goes to standard error: a script's standard output is its result. */
export function say(line) {
  console.error(`setup: ${line}`);
}

/** Run a command to its end. Returns its output; `failed` says why in a sentence, or is null. */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { encoding: "utf8", maxBuffer: 64 << 20, ...options });
  const output = `${result.stdout ?? ""}${result.stderr ?? ""}`;
  return { stdout: result.stdout ?? "", output, failed: failureOf(command, result) };
}

function failureOf(command, { error, status, signal }) {
  if (error?.code === "ENOENT") return `${command} is not installed`;
  if (error?.code === "ETIMEDOUT") return `${command} did not finish in time`;
  if (error) return `${command}: ${error.message}`;
  if (signal) return `${command} was ended by ${signal}`;
  return status === 0 ? null : `${command} ended with code ${status}`;
}

/** Print a failure the way every script of ours does, and make the process exit with 1. */
export function reportFailure(error) {
  if (!(error instanceof SetupError)) throw error;
  console.error(`\n${error.message}\n`);
  process.exitCode = 1;
}

function indent(text) {
  return text.replace(/^/gm, "  ");
}
