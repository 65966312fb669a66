// What a person types, Ctrl-C included.
import { PassThrough } from "node:stream";
import { describe, expect, it } from "vitest";
import { typedLines } from "../src/cli/typed-lines.ts";

const CTRL_C = "\x03";

describe("lines of a terminal", () => {
  const type = () => {
    const [input, output] = [new PassThrough(), new PassThrough()];
    return { input, lines: typedLines("> ", { input, output, terminal: true }) };
  };

  it("end at Ctrl-C, in the middle of a line too", async () => {
    const { input, lines } = type();
    input.write("one\r");
    expect(await lines.next()).toEqual({ value: "one", done: false });
    input.write(`half${CTRL_C}`);
    expect((await lines.next()).done).toBe(true);
  });

  it("go on where Ctrl-C ends something else, such as an answer", async () => {
    const { input, lines } = type();
    let count = 0;
    const listener = () => count++;
    process.on("SIGINT", listener);
    try {
      input.write(`${CTRL_C}two\r`);
      expect(await lines.next()).toEqual({ value: "two", done: false });
    } finally {
      process.off("SIGINT", listener);
    }
    expect(count).toBe(1);
    await lines.return(undefined);
  });
});
