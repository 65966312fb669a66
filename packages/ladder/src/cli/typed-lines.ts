import { createInterface } from "node:readline";

/** The ends of a conversation with a person, or with a pipe. */
interface Typing {
  readonly input: NodeJS.ReadableStream;
  /** Where the prompt and what is typed are shown. */
  readonly output: NodeJS.WritableStream;
  /** A person types, who sees the prompt and can edit the line. */
  readonly terminal: boolean;
}

/** Lines as they are typed, or as a pipe brings them. Ctrl-C ends them, unless it ends something else: who listens to SIGINT. */
export async function* typedLines(
  prompt: string,
  { input, output, terminal }: Typing,
): AsyncGenerator<string> {
  const lines = createInterface({ input, output, terminal, prompt });
  // In this mode the terminal sends Ctrl-C as a character.
  lines.on("SIGINT", () => {
    if (process.emit("SIGINT")) return;
    output.write("\n");
    lines.close();
  });
  try {
    if (terminal) lines.prompt();
    for await (const line of lines) {
      yield line;
      if (terminal) lines.prompt();
    }
  } finally {
    lines.close();
  }
}
