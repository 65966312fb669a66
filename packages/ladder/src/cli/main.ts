#!/usr/bin/env node
// The command's process: streams, and an end that nothing can delay.
import { fileError } from "../node/file-source.ts";
import { runSidenet } from "./program.ts";
import { EXIT } from "./session.ts";
import { typedLines } from "./typed-lines.ts";

// `sidenet check ... | head` closes the pipe early, which is no error; a full disk or a closed terminal is one.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(EXIT.ok);
  process.stderr.write(`${fileError("standard output", error).message}\n`, () => process.exit(EXIT.failed));
});

// The reader of the progress output is gone (`2>&1 | head`, a closed terminal): the work continues.
process.stderr.on("error", () => {});

const written = (stream: NodeJS.WriteStream) =>
  new Promise<void>((resolve) => stream.write("", () => resolve()));

const typed = process.stdin.isTTY === true && process.stderr.isTTY === true;
const exitCode = await runSidenet(process.argv.slice(2), {
  out: (text) => process.stdout.write(text),
  err: (text) => process.stderr.write(text),
  interactive: process.stderr.isTTY === true,
  ...(process.stderr.columns ? { columns: process.stderr.columns } : {}),
  typed,
  lines: (prompt) => typedLines(prompt, { input: process.stdin, output: process.stderr, terminal: typed }),
});
await Promise.all([written(process.stdout), written(process.stderr)]);
process.exit(exitCode); // not exitCode = ...: a driver's threads would keep the process alive
