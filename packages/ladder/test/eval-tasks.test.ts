import { describe, expect, it } from "vitest";
import { encodeRecord } from "../src/data/records.ts";
import { finalNumber } from "../src/eval/final-number.ts";
import { encodeAnswer, followUpIds, promptIds, scoringItem } from "../src/eval/prompts.ts";
import { choiceQuestion, QUESTION_TASKS, trainingRecord } from "../src/eval/tasks.ts";
import { CHOICES, CRITIC, tokenizer } from "./eval-rows.ts";
import { wordTokenizer } from "./tiny-tokenizer.ts";

describe("a final number", () => {
  it.each<[string, number | null]>([
    ["so it is 1,234.50.\n#### $1,234.50 dollars", 1234.5],
    ["#### -3\nQuestion: 7", -3],
    ["First 3, then 4.", 4],
    ["costs $ .5", 0.5],
    ["he owes -$ 5.", -5],
    ["x = 15 - 7", 7],
    ["no number", null],
    ["#### none\n5", null],
    ["####7 and 8", 7],
    ["9".repeat(400), null],
  ])("of %j is %j", (text, value) => expect(finalNumber(text)).toBe(value));
});

describe("an answer", () => {
  const words = wordTokenizer({ bos_token: "<s>", add_bos_token: true, eos_token: "</s>" });
  const question = { user: "Question: a?", ask: "\nAnswer:" };
  const whole = "Question: a?\nAnswer: ab";

  it("follows its question as in one text, where words are marked and BOS begins a text", () => {
    const prompt = promptIds(question, words, "plain");
    expect([...prompt, ...encodeAnswer(question, "ab", words, "plain")]).toEqual(words.encode(whole));
    const [step] = followUpIds({ choices: ["ab"], label: 0 }, words, "plain");
    expect([...prompt, ...step]).toEqual([...words.encode(whole), ...words.eosIds]);
    const chat = words.withChatTemplate("<s>{{ messages[0].content }}", "m");
    expect(promptIds(question, chat, "chat")).toEqual(words.encode(question.user));
    const sentence = { user: "", ask: "" };
    const alone = [...promptIds(sentence, words, "plain"), ...encodeAnswer(sentence, "ab", words, "plain")];
    expect(alone).toEqual(words.encode("ab"));
  });

  it("of no tokens is refused", () => {
    const row = { question: "", choices: ["", "a"], label: 1 };
    expect(() => scoringItem(choiceQuestion(row, "blimp"), "line 1", words, "plain")).toThrow(
      /L-RECORD\] line 1: choice 0 is empty/,
    );
  });
});

describe("what train learns of a task", () => {
  const learned = (task: (typeof QUESTION_TASKS)[number], value: object, asChat = false) => {
    const record = trainingRecord(task, value, "s", asChat);
    const encoding = { bosId: null, eosId: 2, maxLength: 500, cut: false, chat: tokenizer.chatTemplate() };
    const { inputIds, labels } = encodeRecord(record, "s", tokenizer, encoding);
    return { all: tokenizer.decode(inputIds), learned: tokenizer.decode(labels.filter((id) => id !== -100)) };
  };

  it("is the answer to what eval asks", () => {
    expect(learned("boolq", CHOICES[0])).toEqual({
      all: "Sky.\nQuestion: is it blue?\nAnswer: yes<|im_end|>",
      learned: " yes<|im_end|>",
    });
    expect(learned("critic", CRITIC[0]).learned).toBe(" incorrect\nFirst wrong step: 1<|im_end|>");
    expect(learned("critic", CRITIC[1]).learned).toBe(" correct<|im_end|>");
    expect(learned("critic", CRITIC[2]).learned).toBe(" incorrect<|im_end|>");
    for (const row of [CHOICES[2], { choices: ["down", "up"], label: 1 }])
      expect(learned("blimp", row).all).toBe("up<|im_end|>");
    const gsm8k = { question: "1+1?", answer: "1+1=<<1+1=2>>2\n#### 2\n" };
    expect(learned("gsm8k", gsm8k, true)).toEqual({
      all: "<|im_start|>user\nQuestion: 1+1?<|im_end|>\n<|im_start|>assistant\n1+1=2\n#### 2<|im_end|>\n",
      learned: "1+1=2\n#### 2<|im_end|>",
    });
  });

  it("is refused by row where it is no row of the task", () => {
    for (const task of QUESTION_TASKS) {
      for (const value of [{ x: 1 }, null]) {
        expect(() => trainingRecord(task, value, "f.jsonl, line 3", false)).toThrow(
          /L-RECORD\] f\.jsonl, line 3/,
        );
      }
    }
    expect(() => trainingRecord("choice", { text: "a" }, "s", false)).toThrow(
      /question is missing; choices is missing; .*Wanted the fields question, choices.*; this row has the fields text/,
    );
    const wrong = { solution: 5, label: 1 };
    expect(() => trainingRecord("critic", wrong, "s", false)).toThrow(
      /question is missing; solution: .*string/,
    );
    for (const [step, problem] of [
      [12, "first_error_step is no line of the solution"],
      [-2, "first_error_step: "],
    ] as const) {
      const row = { ...CRITIC[0], first_error_step: step };
      expect(() => trainingRecord("critic", row, "s", false)).toThrow(problem);
    }
  });
});
