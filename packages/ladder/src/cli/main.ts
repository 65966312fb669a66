#!/usr/bin/env node
// The command's process: streams, and an end that nothing can delay.
import { runSidenet } from "./program.ts";

// `sidenet check ... | head` closes the pipe early, which is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(0);
});

const written = (stream: NodeJS.WriteStream) =>
  new Promise<void>((resolve) => stream.write("", () => resolve()));

const exitCode = await runSidenet(process.argv.slice(2), {
  out: (text) => process.stdout.write(text),
  err: (text) => process.stderr.write(text),
  interactive: process.stderr.isTTY === true,
  ...(process.stderr.columns ? { columns: process.stderr.columns } : {}),
});
await Promise.all([written(process.stdout), written(process.stderr)]);
process.exit(exitCode); // not exitCode = ...: a driver's threads would keep the process alive
