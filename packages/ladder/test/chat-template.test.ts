import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeRecord, encodingBy, parseRecord } from "../src/data/records.ts";
import { followUpIds } from "../src/eval/prompts.ts";
import { ChatTemplate } from "../src/text/chat-template.ts";
import { strftime } from "../src/text/jinja.ts";
import type { ChatMessage } from "../src/text/messages.ts";
import { loadTokenizer, type Tokenizer } from "../src/text/tokenizer.ts";
import { byteTokenizer, wordTokenizer } from "./tiny-tokenizer.ts";

const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const chatml = () => new ChatTemplate(CHATML, {}, "model");

const message = fc.record({
  role: fc.constantFrom("system", "user", "assistant"),
  content: fc.string({ unit: "grapheme", maxLength: 12 }),
});

describe("a chat template", () => {
  it("cuts a conversation into pieces that join to the whole, the assistant's words learned", () => {
    fc.assert(
      fc.property(fc.array(message, { maxLength: 6 }), (messages) => {
        const pieces = chatml().pieces(messages);
        expect(pieces.map(({ text }) => text).join("")).toBe(chatml().render(messages, false));
        const said = messages.filter(({ role }) => role === "assistant").map(({ content }) => content);
        expect(pieces.filter(({ learned }) => learned).map(({ text }) => text)).toEqual(
          said.map((content) => `${content}<|im_end|>\n`),
        );
      }),
    );
  });

  it("sees the special tokens, and writes what opens the assistant's turn", () => {
    const template = new ChatTemplate("{{ bos_token }}{{ messages[0].content }}", { bos_token: "<s>" }, "m");
    expect(template.render([{ role: "user", content: "hi" }], false)).toBe("<s>hi");
    expect(chatml().render([{ role: "user", content: "hi" }], true)).toBe(
      "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    );
  });

  it("is refused when it is none, when it refuses the messages, and when it rewrites earlier turns", () => {
    expect(() => new ChatTemplate("{% if %}", {}, "some/model")).toThrow(
      /L-CHAT-TEMPLATE\] some\/model: .*cannot be parsed/,
    );
    const strict = new ChatTemplate("{{ raise_exception('roles must alternate') }}", {}, "m");
    expect(() => strict.render([], false)).toThrow(/L-CHAT-TEMPLATE\].*roles must alternate/);
    const stripping = new ChatTemplate("{{ messages.strip() }}", {}, "m");
    expect(() => stripping.render([], false)).toThrow(/L-CHAT-TEMPLATE\].*only a string can be stripped/);
    const forgetful = new ChatTemplate(
      "{% for m in messages %}{{ m.content if loop.last else m.content[:1] }}{% endfor %}",
      {},
      "m",
    );
    const turn = (content: string) => [
      { role: "user", content },
      { role: "assistant", content },
    ];
    expect(() => forgetful.pieces([...turn("abc"), ...turn("def")])).toThrow(/changes what earlier turns/);
  });

  it("shows the tools of a conversation, and learns the calls, which may be all that an answer has", () => {
    const source =
      "{% for t in tools %}[{{ t | tojson }}]{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}" +
      "{% for call in m.tool_calls %}{{ call.name }}({{ call.arguments | tojson }}){% endfor %};{% endfor %}" +
      "{% if add_generation_prompt %}<assistant>{% endif %}";
    const record = parseRecord(
      {
        messages: [
          { role: "user", content: "sum?" },
          { role: "assistant", content: null, tool_calls: [{ name: "add", arguments: { a: 1 } }] },
          { role: "tool", content: "2" },
          { role: "assistant", content: "It is 2." },
        ],
        tools: '[{"name":"add"}]', // as a cell of a table has it
      },
      "line 1",
    );
    const chat = new ChatTemplate(source, {}, "m");
    const encoder = { encode: (text: string) => Array.from(text, (letter) => letter.charCodeAt(0)) };
    const { inputIds, labels } = encodeRecord(record, "line 1", encoder, {
      bosId: null,
      eosId: null,
      maxLength: 200,
      cut: false,
      chat,
    });
    expect(String.fromCharCode(...inputIds)).toBe(
      '[{"name": "add"}]<user>sum?;<assistant>add({"a": 1});<tool>2;<assistant>It is 2.;',
    );
    const learned = labels.map((label) => (label < 0 ? " " : String.fromCharCode(label)));
    expect(learned.join("").trim().split(/ {2,}/)).toEqual(['add({"a": 1});', "It is 2.;"]);
    const silent = { messages: [{ role: "assistant", content: null }] };
    expect(() => parseRecord(silent, "line 2")).toThrow(/L-RECORD\] line 2: .*"tool_calls"/);
  });

  describe("with calls of tools", () => {
    const call = (args: unknown) => ({ type: "function", function: { name: "f", arguments: args } });
    const turn = { role: "assistant", content: "", name: null };
    const textOf = (source: string, ...turns: object[]) => {
      const record = parseRecord({ messages: turns }, "s") as { messages: ChatMessage[] };
      return new ChatTemplate(source, {}, "m").render(record.messages, false);
    };
    const calls = (written: string) =>
      `{% for c in messages[0].tool_calls %}{% set a = (c.function or c).arguments %}${written}{% endfor %}`;
    const joined = calls("{{ 'f(' + c['function']['arguments'] + ')' ~ c.type }}");
    const given = '{"a":[1,"é"]}';
    const object = { a: [1, "é"] };
    const spaced = '{"a": [1, "é"]}';

    it("gets their arguments as objects, whatever the data have", () => {
      for (const args of [given, object]) {
        for (const one of [call(args), { name: "f", arguments: args }]) {
          const wants = (written: string) =>
            expect(textOf(calls(written), { ...turn, tool_calls: [one] }), written);
          wants("{{ a | tojson }}").toBe(spaced);
          wants("{{ c | tojson }}").toContain(`"arguments": ${spaced}}`);
          wants("{% for k, v in a | items %}{{ k }}={{ v | tojson }}{% endfor %}").toBe('a=[1, "é"]');
          wants("{{ a if a is string else a | tojson }}").toBe(spaced);
          wants("{{ a }}").toBe(spaced);
          wants("{{ a.a[1] }}").toBe("é");
        }
      }
    });

    it.each([
      ["{{ a | trim }}", ""],
      ["{{ 'x' ~ a }}", "x"],
      ["{{ 'x' + c.function.get('arguments') }}", "x"],
      ["{{ 'x' + (a or '') }}", "x"],
      ["{{ 'x' + a | default('{}') }}", "x"],
      ["{{ 'x' + (a if c else '') }}", "x"],
      ["{{ ['x', a] | join('') }}", "x"],
      ["{{ a | string }}", ""],
      ["{{ a | replace('q', 'r') }}", ""],
      ["{{ a.strip() }}", ""],
    ])("gets their arguments as JSON where it writes %s", (written, before) => {
      const [fromText, fromObject] = [given, object].map((args) =>
        textOf(calls(written), { ...turn, tool_calls: [call(args)] }),
      );
      expect(fromText).toBe(before + given);
      expect(fromObject).toBe(before + spaced);
      const said = { ...turn, content: "[object Map]", tool_calls: [call(given)] };
      expect(textOf(`{{ messages[0].content }}${calls(written)}`, said)).toBe(
        `[object Map]${before}${given}`,
      );
      const record = parseRecord({ messages: [{ role: "user", content: "q" }, said] }, "s");
      const { messages } = record as { messages: ChatMessage[] };
      const both = `{% for m in messages %}{% set messages = [m] %}${calls(written)};{% endfor %}`;
      expect(new ChatTemplate(both, {}, "m").pieces(messages)).toEqual([
        { text: ";", learned: false },
        { text: `${before}${given};`, learned: true },
      ]);
    });

    it("gets arguments as they are that are no JSON of an object, and no fields that hold nothing", () => {
      expect(textOf(joined, { ...turn, tool_calls: [call("[1]"), call("oops")] })).toBe(
        "f([1])functionf(oops)function",
      );
      const names = "{% for m in messages %}{{ m.keys() | list | join(',') }};{% endfor %}";
      const empty = [null, []].map((tool_calls) => ({ ...turn, tool_calls }));
      expect(textOf(names, ...empty)).toBe("role,content;role,content;");
    });
  });

  it("learns calls of a template that refuses their turns without them", () => {
    const source =
      "{% for m in messages %}{% if not m.content and not m.tool_calls %}{{ raise_exception('empty') }}{% endif %}" +
      "{{ m.content or m.tool_calls[0].name }};{% endfor %}";
    const turns = [
      { role: "user", content: "sum?" },
      { role: "assistant", content: null, tool_calls: [{ name: "add" }] },
    ];
    expect(new ChatTemplate(source, {}, "m").pieces(turns)).toEqual([
      { text: "sum?;", learned: false },
      { text: "add;", learned: true },
    ]);
  });

  it("learns only the last answer where the template rewrites earlier turns, as Qwen3's removes their reasoning", () => {
    const source =
      "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last or m.role != 'assistant' else m.content.split('</think>')[-1] }}" +
      "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    const turns = [
      { role: "user", content: "a" },
      { role: "assistant", content: "why</think>b" },
      { role: "user", content: "c" },
      { role: "assistant", content: "so</think>d" },
    ];
    const template = new ChatTemplate(source, {}, "m");
    expect(template.pieces(turns)).toEqual([
      { text: "<user>a<assistant>b<user>c<assistant>", learned: false },
      { text: "so</think>d", learned: true },
    ]);
    expect(() => template.pieces(turns.slice(0, 3))).toThrow(/changes what earlier turns/);
  });

  it("learns every answer but the first where that is changed by what a template puts before it", () => {
    const source =
      "{% if messages and messages[0].role != 'system' %}S{% endif %}{% for m in messages %}({{ m.content }}{% endfor %}{% if add_generation_prompt %}({% endif %}";
    const roles = ["assistant", "user", "assistant", "user", "assistant"];
    const pieces = new ChatTemplate(source, {}, "m").pieces(
      roles.map((role, i) => ({ role, content: String(i) })),
    );
    expect(pieces.map(({ text, learned }) => (learned ? `<${text}>` : text)).join("")).toBe(
      "S(0(1(<2>(3(<4>",
    );
  });

  // The texts are what Python's jinja2 3.1.6 makes of the templates as transformers 5.24 sets it up.
  it.each<[string, string, string, string]>([
    [
      "strips the given characters only",
      "{{ c.lstrip('\n') }}|{{ c.rstrip('\n') }}|{{ c.strip('\n ') }}",
      "\n  a \n",
      "  a \n|\n  a |a",
    ],
    [
      "strips Python's whitespace",
      "{{ c.strip() }}|{{ c | trim }}",
      "\t \ufeff a\x85\x1c\n",
      "\ufeff a|\ufeff a",
    ],
    [
      "does so in what a dictionary holds, beside none",
      "{% set all = {'a': c.strip(), 'b': none} %}{{ all.a }}{{ 1 if all.b is none else 2 }}",
      "\ufeffx ",
      "\ufeffx1",
    ],
    ["calls the method that a variable names", "{% set strip = 'upper' %}{{ c[strip]() }}", " a", " A"],
    [
      "trims given characters, and what is undefined",
      "{{ c | trim('x') }}|{{ nothing | trim }}|",
      "xax",
      "a||",
    ],
    [
      "compares without converting",
      "{{ 1 if c == false else 2 }}{{ 1 if c != 0 else 2 }}{{ 1 if true == 1 else 2 }}",
      "",
      "211",
    ],
    [
      "reads line ends of every system as its own",
      "{% if true %}\r\na\r\n{% endif %}\r\nb\rc{{ c }}\r\n",
      "\r\n",
      "a\nb\nc\r\n",
    ],
    [
      "loops over nothing where there is nothing",
      "{% for x in messages[0].calls %}{{ x }}{% else %}none{% endfor %}{% for x in messages[0].calls if x %}{{ x }}{% endfor %}|" +
        "{% for x in [1, 2] if x > 1 %}{{ x }}{% endfor %}",
      "",
      "none|2",
    ],
    [
      "keeps what is written between set and endset",
      "{% set x %}[{{ c | trim }}]{% endset %}{{ x }}",
      " a ",
      "[a]",
    ],
    [
      "is given no tools and no documents",
      "{{ 1 if tools is none else 2 }}{{ 1 if documents is none else 2 }}",
      "",
      "11",
    ],
  ])("%s, as Python's Jinja", (_, source, content, wanted) => {
    const template = new ChatTemplate(`{% set c = messages[0].content %}${source}`, {}, "m");
    expect(template.render([{ role: "user", content }], false)).toBe(wanted);
  });

  it("writes dates in English, whatever the locale", () => {
    const date = new Date(2026, 0, 9, 15, 4, 5);
    expect(strftime(date, "%d %b %Y|%A, %B %-d|%y-%m %H:%M:%S %I%p|%j %w %a %%|%Q")).toBe(
      "09 Jan 2026|Friday, January 9|26-01 15:04:05 03PM|009 5 Fri %|%Q",
    );
    const hours = [0, 11, 12, 13].map((hour) => strftime(new Date(2026, 0, 9, hour), "%I %p"));
    expect(hours).toEqual(["12 AM", "11 AM", "12 PM", "01 PM"]);
    const today = new ChatTemplate("{{ strftime_now('%A %d %b %Y') }}", {}, "m").render([], false);
    expect(today).toMatch(/^[A-Z][a-z]+day \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4}$/);
  });

  it("comes with a tokenizer's config, by name where there are several", () => {
    const { json } = byteTokenizer();
    const several = {
      chat_template: [
        { name: "tools", template: "T" },
        { name: "default", template: "D" },
      ],
    };
    const tokenizer = loadTokenizer(json, several);
    expect(tokenizer.chatTemplate()?.render([], false)).toBe("D");
    const [first] = several.chat_template;
    expect(
      loadTokenizer(json, { chat_template: [first] })
        .chatTemplate()
        ?.render([], false),
    ).toBe("T");
    for (const chat_template of [undefined, null, []]) {
      expect(loadTokenizer(json, { chat_template }).chatTemplate()).toBeNull();
    }
    const special = { bos_token: "<b>", eos_token: { content: "<e>" }, pad_token: null };
    const named = "{{ bos_token }}{{ eos_token }}{{ 1 if pad_token is defined else 2 }}";
    expect(
      loadTokenizer(json, { ...special, chat_template: named })
        .chatTemplate()
        ?.render([], false),
    ).toBe("<b><e>2");
    const other = tokenizer.withChatTemplate("{{ eos_token }}", "file.jinja");
    expect(other.chatTemplate()?.render([], false)).toBe("");
    expect(other.encode("a")).toEqual(tokenizer.encode("a"));
  });

  it("names the token that ends a turn, where texts end in another, as in base models", () => {
    const ends = (template: string, tokenizer: Tokenizer) =>
      tokenizer.withChatTemplate(template, "m").eosIds.map((id) => tokenizer.decode([id]));
    const base = byteTokenizer({ eos_token: "<|endoftext|>", chat_template: CHATML }).tokenizer;
    expect(base.eosIds).toEqual([0, 2]);
    expect(encodingBy(base)).toMatchObject({ eosId: 0, endIds: [0, 2] });
    expect(ends("{% for m in messages %}{{ m.content }}\n{% endfor %}", base)).toEqual(["<|endoftext|>"]);
    expect(ends("{{ messages[1].content }}<|endoftext|><|im_end|>", base)).toEqual(["<|endoftext|>"]);
    const instructed = "The answer:<|im_start|>{{ messages[1].content }}<|im_end|>"; // the word of the turn that is tried
    expect(ends(instructed, base)).toEqual(["<|endoftext|>", "<|im_end|>"]);
    const opening = "{{ messages[1].content }}{% if add_generation_prompt %}<|im_start|>{% endif %}";
    expect(ends(opening, base)).toEqual(["<|endoftext|>"]);
    const afterBos = byteTokenizer({ bos_token: "<|im_start|>", add_bos_token: true }).tokenizer;
    expect(ends("{{ messages[1].content }}", afterBos)).toEqual(["<|im_end|>"]);
    expect(ends("{{ raise_exception('no') }}", base)).toEqual(["<|endoftext|>"]);
    expect(ends("{% if %}", base)).toEqual(["<|endoftext|>"]);
    expect(() => base.withChatTemplate("{% if %}", "m").chatTemplate()).toThrow(/L-CHAT-TEMPLATE/);
    // A blank before the end, as Llama 2 has, is decoded to nothing but ends no turn.
    expect(ends("{{ messages[1].content }} </s>", wordTokenizer())).toEqual(["</s>"]);
  });

  it("ends what is learned of a turn, and an answer that eval scores, with that token", () => {
    const { tokenizer } = byteTokenizer({ eos_token: "<|endoftext|>", chat_template: CHATML });
    const { labels } = encodeRecord(
      {
        messages: [
          { role: "user", content: "u" },
          { role: "assistant", content: "v" },
        ],
      },
      "s",
      tokenizer,
      { ...encodingBy(tokenizer), maxLength: 100, cut: false },
    );
    expect(tokenizer.decode(labels.filter((id) => id !== -100))).toBe("v<|im_end|>");
    const steps = { choices: ["1", "12"], label: 0 };
    const texts = (template: "chat" | "plain") =>
      followUpIds(steps, tokenizer, template).map((ids) => tokenizer.decode(ids));
    expect(texts("chat")).toEqual([" 1<|im_end|>", " 12<|im_end|>"]);
    expect(texts("plain")).toEqual([" 1<|endoftext|>", " 12<|endoftext|>"]);
  });
});

describe("a text that continues another", () => {
  it("gets no blank in front", () => {
    const tokenizer = wordTokenizer();
    const plain = { addSpecialTokens: false };
    const go = (text: string) =>
      tokenizer.decode([
        ...tokenizer.encode("c", plain),
        ...tokenizer.encode(text, { ...plain, continues: true }),
      ]);
    for (const text of ["ab", " ab", "  c", "\nc", "é"]) expect(go(text)).toBe(`c${text}`);
    expect(tokenizer.decode([...tokenizer.encode("c", plain), ...tokenizer.encode("ab", plain)])).toBe(
      "c ab",
    );
  });

  it("gets one after a special token where the tokenizer puts one there", () => {
    const tokenizer = wordTokenizer();
    const whole = tokenizer.encode("c</s>ab", { addSpecialTokens: false });
    const [first, end, ...rest] = whole.slice(-3);
    expect(tokenizer.encode("ab", { addSpecialTokens: false, continues: end })).toEqual(rest);
    expect(tokenizer.encode("ab", { addSpecialTokens: false, continues: first })).not.toEqual(rest);
  });

  it("is encoded alone where it merges with the line break that is put before it", () => {
    const vocab = { "<unk>": 0, "▁": 1, a: 2, "\n": 3, "\n\n": 4, "▁a": 5 };
    const model = { type: "BPE", vocab, merges: ["\n \n", "▁ a"], unk_token: "<unk>" };
    const config = { bos_token: "<unk>", add_bos_token: true };
    const tokenizer = loadTokenizer({ model, normalizer: { type: "Prepend", prepend: "▁" } }, config);
    expect(tokenizer.encode("a", { continues: true })).toEqual([2]);
    expect(tokenizer.encode("\na", { continues: true })).toEqual([1, 3, 2]);
  });
});
