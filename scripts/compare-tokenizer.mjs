// Compares sidenet's token ids with llama.cpp's for the same GGUF vocabulary, on many random strings: emoji, scripts without
// spaces, combining marks, code, long numbers, control characters, and mixtures. Also checks that ids decode to their text.
//
//   npm run build && node scripts/compare-tokenizer.mjs [--model FILE.gguf] [--count 1000] [--seed 1]
//
// Prints up to three differing strings of each kind, and the counts. Exits with 1 if there are any.

import { openModel } from "@sidenet/ladder/node";
import { Random } from "@sidenet/tensor";
import { fetchModel } from "./fetch-model.mjs";
import { withLlamaModel } from "./lib/llama-cpp.mjs";
import { scriptOptions } from "./lib/options.mjs";

const points = (first, last) => (random) => String.fromCodePoint(first + random.below(last - first + 1));
const oneOf =
  (...items) =>
  (random) =>
    items[random.below(items.length)];
const many =
  (draw, min, max, between = "") =>
  (random) =>
    Array.from({ length: min + random.below(max - min + 1) }, () => draw(random)).join(between);

const WORDS =
  "the of and to in is it you that he was for on are with as his they at be this from have or by one had not but what all were when we there can an your which their said if do will each about how up out them then she many some so these would other into has more her two like him see time could no make than first been its who now people my made over did down only way find use may water long little very after words called just where most know".split(
    " ",
  );
const CODE = [
  "for (let i = 0; i < n; i++) {\n    ",
  "def f(x):\n\treturn x ** 2\n",
  "#include <stdio.h>\n",
  "SELECT * FROM t WHERE a != 'b';",
  '</div>\n\n  <p class="x">',
  // biome-ignore lint/suspicious/noTemplateCurlyInString: code as text, to be tokenized
  "=> ${a}",
  "x[0]->y::z",
  "0xFF & ~mask",
  "//TODO: don't\r\n",
  "\\frac{1}{2}",
  'import { a } from "./b.ts";\n',
  "        }\n    }\n}",
];
const EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "❤️", "🏳️‍🌈", "1️⃣", "🧑🏿‍🚀", "☃", "🫠"];

/** How a string is drawn, by the name of its kind. */
const KINDS = {
  english: many(oneOf(...WORDS, "don't", "I'll", "we're", "It's", "O'Neil"), 1, 20, " "),
  punctuation: many(points(0x21, 0x7e), 1, 30),
  code: many(oneOf(...CODE), 1, 5),
  "long numbers": many(
    oneOf(
      "3.14159",
      "1,000,000",
      "12345678901234567890",
      "-0.5e-10",
      "٣٤٥",
      "½",
      "²",
      "2026-11-26",
      "१२३",
      "0",
    ),
    1,
    8,
    " ",
  ),
  digits: many(points(0x30, 0x39), 1, 60),
  emoji: many(oneOf(...EMOJI, " ", "ok"), 1, 12),
  cjk: many(
    oneOf(points(0x4e00, 0x9fff), points(0x3041, 0x30ff), points(0xac00, 0xd7a3), () => "。"),
    1,
    25,
  ),
  "combining marks": many(
    (random) => points(0x61, 0x7a)(random) + many(points(0x300, 0x36f), 0, 4)(random),
    1,
    12,
  ),
  "other scripts": many(
    oneOf(
      points(0x400, 0x4ff),
      points(0x5d0, 0x5ea),
      points(0x621, 0x64a),
      points(0x905, 0x939),
      points(0xe01, 0xe3a),
      () => " ",
    ),
    1,
    30,
  ),
  "control characters": many(
    oneOf(
      points(0, 0x1f),
      points(0x7f, 0x9f),
      () => "\u200b",
      () => "\ufeff",
      () => "a",
    ),
    1,
    20,
  ),
  blanks: many(
    oneOf(" ", "  ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u2003", "\u3000", "x", "7", "."),
    1,
    30,
  ),
  "rare planes": many(
    oneOf(
      points(0x10300, 0x1034a),
      points(0x1d400, 0x1d7ff),
      points(0x20000, 0x2a6df),
      points(0xe000, 0xe0ff),
    ),
    1,
    10,
  ),
};

function drawStrings(count, seed) {
  const names = Object.keys(KINDS);
  return Array.from({ length: count }, (_, i) => {
    const random = new Random(seed, i);
    const kind = names[i % (names.length + 1)] ?? "mixed";
    const draw = KINDS[kind] ?? many((r) => KINDS[names[r.below(names.length)]](r), 2, 4);
    return { kind, text: draw(random) };
  });
}

const values = scriptOptions({ model: null, count: 1000, seed: 1 }, { positive: ["count"] });
const path = values.model ?? (await fetchModel());
const model = await openModel(path);
const tokenizer = await model.tokenizer();
const samples = drawStrings(values.count, values.seed);
const theirs = await withLlamaModel(path, { vocabOnly: true }, async (llama) =>
  samples.map(({ text }) => [...llama.tokenize(text, false)]),
);
const differing = new Map();
let tokens = 0;
let undecoded = 0;
for (const [i, { kind, text }] of samples.entries()) {
  const ids = tokenizer.encode(text, { addSpecialTokens: false });
  tokens += ids.length;
  if (tokenizer.decode(ids) !== text) undecoded++;
  if (ids.join() === theirs[i].join()) continue;
  differing.set(kind, (differing.get(kind) ?? 0) + 1);
  if (differing.get(kind) > 3) continue;
  console.log(
    `${kind}: ${JSON.stringify(text)}\n  sidenet   ${ids.join(" ")}\n  llama.cpp ${theirs[i].join(" ")}`,
  );
}
await model.close();
const wrong = [...differing.values()].reduce((a, b) => a + b, 0);
for (const [kind, count] of differing) console.log(`${kind}: ${count} differ`);
console.log(
  `${samples.length - wrong} of ${samples.length} strings have the same ids (${tokens} tokens, ` +
    `${Object.keys(KINDS).length} kinds and mixtures, seed ${values.seed}); ${undecoded} do not decode to themselves`,
);
process.exit(wrong + undecoded === 0 ? 0 : 1);
