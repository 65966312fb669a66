/** A tokenizer over bytes with ChatML's turns, and rows of the tasks of `eval`. */
import { byteTokenizer } from "./tiny-tokenizer.ts";

const CHATML =
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" +
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
export const { tokenizer } = byteTokenizer({ chat_template: CHATML });

export const CHOICES = [
  { context: "Sky.", question: "is it blue?", choices: ["no", "yes"], label: 1 },
  { question: "2+2?", choices: ["four", "5", "twenty two"], label: 0 },
  { question: "up?", choices: ["down", "up"], label: 1 },
];

export const CRITIC = [
  { question: "1+1?", solution: ["1+1=3", ..."bcdefghijkl"].join("\n"), label: 0, first_error_step: 0 },
  { question: "1+1?", solution: "1+1=2\n#### 2", label: 1, first_error_step: -1 },
  { question: "1+2?", solution: "1+2=4", label: 0 },
];
