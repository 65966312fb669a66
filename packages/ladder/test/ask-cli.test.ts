import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it, vi } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { runSidenet } from "../src/cli/program.ts";
import type { Estimate } from "../src/eval/intervals.ts";
import type { EvalSummary } from "../src/node/eval-run.ts";
import { expectPeak, sidenet, sidenetWith } from "./capture.ts";
import { writeTinyModel } from "./tiny-files.ts";

const folder = temporaryFolder();
let common: string[];
let adapter: string;
beforeAll(async () => {
  const files = await writeTinyModel(folder);
  common = ["--model", files.model, "--device", "cpu"];
  adapter = files.adapter;
});

interface Generated {
  text: string;
  ids: number[];
  stopped: string;
  results: { prompt: string; text: string; prompt_ids: number[] }[];
}
async function generated(...args: string[]): Promise<Generated> {
  const run = await sidenet("generate", ...common, ...args, "--json");
  expect(run.err).not.toContain("L-");
  return run.json() as unknown as Generated;
}

/** Until it is disposed of, Ctrl-C is pressed as soon as a command listens to it. */
function ctrlC(): Disposable {
  const on = process.on.bind(process);
  const spy = vi.spyOn(process, "on").mockImplementation((name, listener) => {
    if (name === "SIGINT") queueMicrotask(() => listener("SIGINT"));
    return on(name, listener);
  });
  return { [Symbol.dispose]: () => spy.mockRestore() };
}

describe("sidenet generate", () => {
  it("writes the prompt and what follows, as it comes; the same as --json has", async () => {
    const args = ["--prompt", "ab", "--max-tokens", "5"];
    const { text, ids, results, ...more } = await generated(...args);
    expect(ids).toHaveLength(5);
    expect(more).toMatchObject({
      model: common[1],
      adapter: null,
      device: expect.stringMatching(/^cpu: ./),
      sampling: { temperature: 0, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1, seed: 0 },
    });
    expect(results).toMatchObject([
      { prompt: "ab", text, prompt_ids: ["a", "b"].map((c) => c.charCodeAt(0) + 3) },
    ]);
    const plain = await sidenet("generate", ...common, ...args);
    expect(plain.out).toBe(`ab${text}\n`);
    expect((await generated(...args, "--adapter", adapter)).ids).not.toEqual(ids);
  });

  it("continues several prompts, from a file too, each as it would be alone", async () => {
    const file = join(folder, "prompts.txt");
    await writeFile(file, "xyz\n\nq\r\n");
    const args = ["--max-tokens", "4", "--temperature", "1", "--seed", "3"];
    await writeFile(join(folder, "marked.txt"), "\ufeffxyz\r\n");
    const marked = await generated("--prompt-file", join(folder, "marked.txt"), ...args);
    expect(marked.results.map(({ prompt }) => prompt)).toEqual(["xyz"]);
    const several = await generated("--prompt", "ab", "--prompt-file", file, ...args);
    expect(several.results.map(({ prompt }) => prompt)).toEqual(["ab", "xyz", "q"]);
    expect((await generated("--prompt", "ab", ...args)).text).toBe(several.results[0].text);
    const shown = await sidenet("generate", ...common, "--prompt", "ab", "--prompt-file", file, ...args);
    expect(shown.out).toBe(several.results.map(({ prompt, text }) => `${prompt}${text}\n\n`).join(""));
  });

  it("draws each prompt's text from its own random numbers, whatever the batch size", async () => {
    const args = ["--prompt", "ab", "--prompt", "ab", "--max-tokens", "8", "--seed", "3"];
    const together = (await generated(...args)).results.map(({ text }) => text);
    const apart = (await generated(...args, "--batch-size", "1")).results.map(({ text }) => text);
    expect(apart).toEqual(together);
    expect(apart[0]).not.toBe(apart[1]);
  });

  it("ends before a stop string, and asks in the chat template", async () => {
    const free = await generated("--prompt", "ab", "--max-tokens", "12");
    const stop = free.text.slice(2, 4);
    const stopped = await generated("--prompt", "ab", "--max-tokens", "12", "--stop", stop);
    expect(stopped).toMatchObject({
      text: free.text.slice(0, free.text.indexOf(stop)),
      stopped: "stop string",
    });
    const chat = ["--template", "chat", "--system", "s", "--prompt", "u", "--max-tokens", "2"];
    const [{ prompt_ids }] = (await generated(...chat)).results;
    expect(String.fromCharCode(...prompt_ids.filter((id) => id > 2).map((id) => id - 3))).toBe(
      "system\ns\nuser\nu\nassistant\n",
    );
  });

  it("begins a text where the prompt is empty", async () => {
    const { out, exitCode } = await sidenet(
      "generate",
      ...common,
      "--prompt",
      "",
      "--max-tokens",
      "3",
      "--json",
    );
    expect(exitCode).toBe(0);
    expect((JSON.parse(out) as { prompt_ids: number[] }).prompt_ids).toHaveLength(1);
  });

  it("keeps what Ctrl-C has left of its texts, and does not end as if all were there", async () => {
    using _ = ctrlC();
    const args = ["--prompt", "ab", "--prompt", "cd", "--batch-size", "1", "--max-tokens", "5", "--json"];
    const run = await sidenet("generate", ...common, ...args);
    expect(run.exitCode).toBe(130);
    const { results, text } = run.json() as unknown as Generated;
    expect(results).toMatchObject([{ prompt: "ab", text, stopped: "interrupted" }]);
  });

  it("says what is missing", async () => {
    expect(await sidenet("generate", ...common)).toMatchObject({ exitCode: 2 });
    expect((await sidenet("generate", ...common, "--prompt", "a", "--system", "s")).exitCode).toBe(2);
    const lost = await sidenet("generate", ...common, "--prompt-file", join(folder, "none.txt"));
    expect(lost.err).toMatch(/L-FILE-MISSING.*none\.txt/);
    const broken = join(folder, "broken.jinja");
    await writeFile(broken, "{% if %}");
    const chat = await sidenet(
      "generate",
      ...common,
      "--prompt",
      "a",
      "--template",
      "chat",
      "--chat-template",
      broken,
    );
    expect(chat.err).toMatch(/L-CHAT-TEMPLATE\].*broken\.jinja/);
  });
});

describe("sidenet chat", () => {
  const args = () => ["chat", ...common, "--max-tokens", "4"];

  it("answers each line with all that was said before", async () => {
    const run = await sidenetWith(["hello", "", "more"], ...args(), "--json");
    const { messages } = run.json() as { messages: { role: string; content: string }[] };
    expect(messages.map(({ role }) => role)).toEqual(["user", "assistant", "user", "assistant"]);
    const [first] = (await generated("--template", "chat", "--prompt", "hello", "--max-tokens", "4")).results;
    expect(messages[1].content).toBe(first.text);
    const shown = await sidenetWith(["hello", "", "more"], ...args());
    expect(shown.out).toBe(`${messages[1].content}\n${messages[3].content}\n`);
    const alone = await sidenetWith(["more"], ...args(), "--json");
    expectPeak(run.json());
    expect((alone.json() as { messages: unknown[] }).messages[1]).not.toEqual(messages[3]);
  });

  it("ends with an answer that Ctrl-C has ended where no person types, who might go on", async () => {
    using _ = ctrlC();
    const piped = await sidenetWith(["hello", "more"], ...args(), "--json");
    expect(piped.exitCode).toBe(130);
    expect((piped.json() as { messages: unknown[] }).messages).toHaveLength(2);
    const typed = async function* () {
      yield* ["hello", "more"];
    };
    const out: string[] = [];
    const terminal = { out: (text: string) => out.push(text), err: () => {}, interactive: true };
    const exitCode = await runSidenet([...args(), "--json"], { ...terminal, typed: true, lines: typed });
    expect([exitCode, JSON.parse(out.join("")).messages.length]).toEqual([0, 4]);
  });

  it("forgets, ends and explains on command", async () => {
    const run = await sidenetWith(
      ["hello", "/reset", "/what", "more", "/exit", "never"],
      ...args(),
      "--json",
    );
    const alone = await sidenetWith(["more"], ...args(), "--json");
    const messages = (captured: typeof run) => (captured.json() as { messages: unknown[] }).messages;
    expect(messages(run)).toEqual(messages(alone));
    expect(run.err).toContain("there is no /what");
  });

  it("leaves out the oldest turns when the context is full", async () => {
    const lines = Array.from({ length: 6 }, (_, i) => `${i}`.repeat(40));
    const run = await sidenetWith(lines, ...args(), "--system", "s", "--json");
    const { messages } = run.json() as { messages: { role: string; content: string }[] };
    expect(messages[0]).toEqual({ role: "system", content: "s" });
    expect(messages[1].role).toBe("user");
    expect(messages.length).toBeLessThan(13);
    expect(messages.at(-2)?.content).toBe(lines[5]);
    expect(run.err).toMatch(/oldest messages no longer fit/);
  });

  it("refuses a turn longer than the context, and goes on with the conversation", async () => {
    const run = await sidenetWith(["hello", "x".repeat(300), "more"], ...args(), "--json");
    const without = await sidenetWith(["hello", "more"], ...args(), "--json");
    expect(run.err).toMatch(/L-CONTEXT\] a turn of \d+ tokens.* leaves no space.*fewer words/);
    expect(run.err).not.toMatch(/oldest messages/);
    expect((run.json() as { messages: unknown[] }).messages).toEqual(
      (without.json() as { messages: unknown[] }).messages,
    );
    expect(run.exitCode).toBe(0);
  });
});

describe("sidenet eval", () => {
  const CHOICES = [
    { question: "a?", choices: ["b", "c"], label: 0 },
    { question: "d?", choices: ["ef", "g", "h"], label: 2 },
    { question: "i?", choices: ["j", "k"], label: 1 },
  ];
  const put = async (name: string, text: string) => {
    await writeFile(join(folder, name), text);
    return join(folder, name);
  };
  const jsonl = (values: readonly object[]) => values.map((value) => JSON.stringify(value)).join("\n");
  const evaluated = async (...args: string[]) => {
    const run = await sidenet("eval", ...common, ...args, "--json");
    return run.json() as unknown as EvalSummary;
  };

  it("scores a model, and with an adapter before, after and the difference", async () => {
    const data = await put("choices.jsonl", jsonl(CHOICES));
    const summary = await evaluated("--task", "choice", "--data", data);
    const interval: Estimate = {
      value: expect.any(Number),
      low: expect.any(Number),
      high: expect.any(Number),
      count: 3,
    };
    const metrics = { accuracy: interval, accuracy_normalized: interval };
    expect(summary).toMatchObject({
      task: "choice",
      data: [data],
      adapter: null,
      template: "plain",
      quantized: false,
      count: 3,
      before: metrics,
      after: null,
      difference: null,
    });
    const predictions = join(folder, "found.jsonl");
    const both = await evaluated(
      "--task",
      "choice",
      "--data",
      data,
      "--adapter",
      adapter,
      "--predictions",
      predictions,
    );
    expect(both.before).toEqual(summary.before);
    expectPeak({ ...summary });
    expectPeak({ ...both });
    const { after, difference } = both;
    expect(difference?.accuracy.value).toBeCloseTo(after!.accuracy.value - both.before.accuracy.value);
    const lines = (await readFile(predictions, "utf8"))
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines).toHaveLength(3);
    expect(lines[1]).toMatchObject({
      before: { label: 2, source: "choices.jsonl, line 2" },
      after: { label: 2 },
    });
    expect(lines[1].before.log_likelihoods).not.toEqual(lines[1].after.log_likelihoods);
    const shown = await sidenet("eval", ...common, "--task", "choice", "--data", data, "--adapter", adapter);
    expect(shown.out).toMatch(/^choice +items +before +after +difference\naccuracy +3 +[\d.]+ % \[/);
  });

  it("holds an accuracy against the one answer that is right most often, where all questions have the same", async () => {
    const row = (choices: string[], label: number) => ({ question: "a?", choices, label });
    const rows = [0, 1, 1, 1].map((label) => row(["no", "yes"], label));
    const data = await put("same.jsonl", jsonl(rows));
    const summary = await evaluated("--task", "boolq", "--data", data);
    expect(summary.constant_answer).toEqual({ answer: "yes", accuracy: 0.75 });
    const shown = await sidenet("eval", ...common, "--task", "boolq", "--data", data);
    expect(shown.out).toContain('\nalways "yes" would be 75.0 % right\n');
    const others = await put("others.jsonl", jsonl([...rows, row(["b", "cd"], 0)]));
    expect((await evaluated("--task", "arc", "--data", others)).constant_answer).toBeNull();
  });

  it("takes other formats and names, some rows only, and NF4", async () => {
    const csv = await put("c.csv", 'q,options,answer\na?,"[""b"",""c""]",A\nd?,"[""e"",""f""]",1\n');
    const names = ["--map", "question=q", "--map", "choices=options", "--map", "label=answer"];
    const summary = await evaluated(
      "--task",
      "arc",
      "--data",
      csv,
      ...names,
      "--limit",
      "1",
      "--quantize",
      "nf4",
    );
    expect(summary).toMatchObject({ count: 1, quantized: true });
  });

  it("has perplexity of text, the same for windows of any number together", async () => {
    const data = await put("t.jsonl", jsonl([{ text: "abc def ghi jkl mno" }, { text: "pqr" }]));
    const sizes = ["--task", "perplexity", "--data", data, "--context", "8"];
    const one = await evaluated(...sizes, "--batch-size", "1");
    const four = await evaluated(...sizes, "--batch-size", "4");
    expect(one.before.perplexity.value).toBeCloseTo(four.before.perplexity.value, 2);
    expect(one.before.perplexity.low).toBeLessThan(one.before.perplexity.value);
    expect(one.count).toBeGreaterThan(3);
  });

  it("maps the fields of a task that are none of a record", async () => {
    const data = await put("gsm.jsonl", jsonl([{ problem: "1+1?", worked: "#### 2" }]));
    const names = ["--map", "question=problem", "answer=worked", "--answer-tokens", "2"];
    expect(await evaluated("--task", "gsm8k", "--data", data, ...names)).toMatchObject({ count: 1 });
    const { err } = await sidenet("eval", ...common, "--task", "critic", "--data", data);
    expect(err).toMatch(
      /question is missing; solution is missing.*the fields problem \(string\), worked \(string\)/,
    );
  });

  it("tells which row is wrong, and what a task needs", async () => {
    const data = await put("bad.jsonl", jsonl([CHOICES[0], { question: "q" }]));
    const run = await sidenet("eval", ...common, "--task", "boolq", "--data", data);
    expect(run).toMatchObject({ exitCode: 1, out: "" });
    expect(run.err).toMatch(/L-RECORD\] bad\.jsonl, line 2/);
    expect((await sidenet("eval", ...common, "--task", "none", "--data", data)).exitCode).toBe(2);
    for (const [option, task] of [
      [["--stride", "4"], "perplexity"],
      [["--context", "9"], "perplexity"],
      [["--join"], "perplexity"],
      [["--max-tokens", "4"], "perplexity"],
      [["--answer-tokens", "4"], "gsm8k"],
    ] as const) {
      const other = await sidenet("eval", ...common, "--task", "boolq", "--data", data, ...option);
      expect(other).toMatchObject({ exitCode: 2, out: "" });
      expect(other.err).toContain(`${option[0]} is for ${task}, and does nothing for boolq`);
    }
    expect(
      (await sidenet("eval", ...common, "--task", "choice", "--data", data, "--map", "x=y")).exitCode,
    ).toBe(2);
  });
});

describe("sidenet train", () => {
  it("learns a task's rows as eval asks them, in chat and packed, and eval finds the storage it was trained with", async () => {
    const rows = Array.from({ length: 8 }, (_, i) => ({
      problem: `${i}?`,
      choices: ["no", "yes"],
      label: i % 2,
    }));
    const data = join(folder, "train.jsonl");
    await writeFile(data, rows.map((row) => JSON.stringify(row)).join("\n"));
    const output = join(folder, "trained");
    const asked = ["--map", "question=problem"];
    const learning = ["--task", "boolq", "--template", "chat", "--pack-length", "200", "--steps", "2"];
    const sizes = ["--batch-size", "2", "--side-width", "8", "--layers", "1", "--sample-tokens", "0"];
    const run = await sidenet(
      ...["train", ...common, "--data", data, "--eval-data", data, "--output", output],
      ...[...learning, ...asked, ...sizes, "--json"],
    );
    expect(run.err).not.toContain("L-");
    const { loss, tokens, eval_loss } = run.json() as { loss: number[]; tokens: number; eval_loss: number };
    expect(loss).toHaveLength(2);
    expect(tokens).toBeGreaterThan(0);
    expect(eval_loss).toBeGreaterThan(0);
    const scored = await sidenet(
      ...["eval", ...common, "--task", "boolq", "--template", "chat", "--data", data, ...asked],
      ...["--adapter", output, "--json"],
    );
    expect(scored.json()).toMatchObject({ quantized: true, count: 8, template: "chat" });
  });

  it("refuses rows that are none of the task", async () => {
    const data = join(folder, "none.jsonl");
    await writeFile(data, '{"text":"a"}\n');
    const run = await sidenet(
      "train",
      ...common,
      "--data",
      data,
      "--output",
      join(folder, "o"),
      "--task",
      "critic",
    );
    expect(run.err).toMatch(/L-RECORD\] none\.jsonl, line 1/);
  });
});
