/** The choice of the text to learn: one of the page's, or one that is pasted, chosen or dropped. */
import { byId, bytes, element } from "./dom.ts";
import type { TextFile } from "./protocol.ts";
import { OWN_PROMPT, TEXTS } from "./texts.ts";

const MAX_BYTES = 2 ** 23;

/** An error whose message is shown to the user. */
export class Sentence extends Error {}

const readable = /\.(txt|md|text|jsonl)$/i;

export class TextChoice {
  /** The chosen file; without one, the text area has the text. */
  #file: TextFile | null = null;
  readonly #onProblem: (text: string | null) => void;
  readonly #onChange: (prompt: string) => void;

  constructor(onChange: (prompt: string) => void, onProblem: (text: string | null) => void) {
    this.#onChange = onChange;
    this.#onProblem = onProblem;
    const choice = (id: string, title: string, about: string) =>
      element(
        "label",
        { class: "choice" },
        element("input", { type: "radio", name: "text", value: id }),
        element("b", {}, title),
        element("span", {}, about),
      );
    byId("texts").append(
      ...TEXTS.map(({ id, title, about }) => choice(id, title, about)),
      choice("own", "Your own", "pasted, or from a file"),
    );
    byId("texts").addEventListener("change", () => this.#changed());
    byId<HTMLTextAreaElement>("own-text").addEventListener("input", () => this.#take(null));
    const input = byId<HTMLInputElement>("own-file");
    input.addEventListener("change", () => {
      const [file] = input.files ?? [];
      if (file) void this.#read(file);
      input.value = ""; // so that the same file can be chosen again
    });
    this.#takeDrops();
    this.#select(TEXTS[0].id);
  }

  /** The name of the text in messages and in the table of runs. */
  get title(): string {
    return TEXTS.find(({ id }) => id === this.#selected)?.title ?? this.#file?.name ?? "your text";
  }

  /** Throws a `Sentence` if there is no text. */
  async text(): Promise<TextFile> {
    const bundled = TEXTS.find(({ id }) => id === this.#selected);
    if (bundled) {
      const response = await fetch(bundled.url).catch(() => null);
      if (!response?.ok) throw new Sentence("The text cannot be fetched. Is the page's server still there?");
      return { name: bundled.fileName, bytes: new Uint8Array(await response.arrayBuffer()) };
    }
    if (this.#file) return this.#file;
    const { value } = byId<HTMLTextAreaElement>("own-text");
    if (value.trim() === "") throw new Sentence("There is no text yet: paste one, or choose a file.");
    return { name: "your-text.txt", bytes: new TextEncoder().encode(value) };
  }

  get #selected(): string {
    return document.querySelector<HTMLInputElement>('input[name="text"]:checked')?.value ?? "";
  }

  #select(id: string): void {
    document.querySelector<HTMLInputElement>(`input[name="text"][value="${id}"]`)!.checked = true;
    this.#changed();
  }

  #changed(): void {
    const id = this.#selected;
    byId("own").hidden = id !== "own";
    this.#onChange(TEXTS.find((text) => text.id === id)?.prompt ?? OWN_PROMPT);
  }

  #take(file: TextFile | null): void {
    this.#file = file;
    this.#onProblem(null);
    byId("own-name").textContent = file ? `${file.name}, ${bytes(file.bytes.length)}` : "";
    if (file) byId<HTMLTextAreaElement>("own-text").value = "";
  }

  async #read(file: File): Promise<void> {
    if (!readable.test(file.name)) {
      this.#onProblem(`${file.name} is not read here: wanted a .txt, .md or .jsonl file.`);
      return;
    }
    if (file.size > MAX_BYTES) {
      this.#onProblem(`${file.name} has ${bytes(file.size)}; this page takes at most ${bytes(MAX_BYTES)}.`);
      return;
    }
    try {
      const content = new Uint8Array(await file.arrayBuffer());
      this.#select("own");
      this.#take({ name: file.name, bytes: content });
    } catch {
      this.#onProblem(`${file.name} cannot be read. Is it still there?`);
    }
  }

  /** Lets files and texts be dropped anywhere on the page. */
  #takeDrops(): void {
    addEventListener("dragover", (event) => {
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) document.body.classList.remove("dropping");
    });
    addEventListener("drop", (event) => {
      event.preventDefault();
      document.body.classList.remove("dropping");
      const [file] = event.dataTransfer?.files ?? [];
      const text = event.dataTransfer?.getData("text/plain") ?? "";
      if (file) void this.#read(file);
      else if (text.trim() !== "") {
        this.#select("own");
        this.#take(null);
        byId<HTMLTextAreaElement>("own-text").value = text;
      } else this.#onProblem("What was dropped is no file and no text.");
    });
  }
}
