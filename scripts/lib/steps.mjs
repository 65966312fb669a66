// How scripts run commands, report progress and fail.

import { spawnSync } from "node:child_process";

/** A failed step: what failed, why, and the shell lines that a person can run instead. */
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

/** Runs a command to its end. `failed` says in a sentence how it failed; null if it ended with code 0. */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { encoding: "utf8", maxBuffer: 64 << 20, ...options });
  const output = `${result.stdout ?? ""}${result.stderr ?? ""}`;
  return { stdout: result.stdout ?? "", output, failed: failureOf(command, result) };
}

/** Returns the result of `run` if the command succeeded. Throws `SetupError` of `what` and `lines` otherwise. */
export function requireSuccess(done, what, lines = []) {
  if (done.failed) throw new SetupError(what, `${done.failed}\n${done.output}`, lines);
  return done;
}

function failureOf(command, { error, status, signal }) {
  if (error?.code === "ENOENT") return `${command} is not installed`;
  if (error?.code === "ETIMEDOUT") return `${command} did not finish in time`;
  if (error) return `${command}: ${error.message}`;
  if (signal) return `${command} was ended by ${signal}`;
  return status === 0 ? null : `${command} ended with code ${status}`;
}

/**
 * Whether an error is one that the user of a script can cause and mend: a failed step, an error of the packages (by its name,
 * since scripts that run before there is a node_modules folder cannot import them), or one of the system about a file.
 */
export const isExpected = (error) =>
  error instanceof SetupError || error?.name === "SidenetError" || error?.syscall !== undefined;

/** Prints an expected error without its stack and makes the process exit with 1. Throws any other error again. */
export function reportFailure(error) {
  if (!isExpected(error)) throw error;
  console.error(`\n${error.message}\n`);
  process.exitCode = 1;
}

function indent(text) {
  return text.replace(/^/gm, "  ");
}
