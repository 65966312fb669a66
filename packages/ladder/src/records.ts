/** Records of text data, and what they are as tokens with labels. */
import { SidenetError } from "@sidenet/tensor";
import { z } from "zod";

/** Where a record came from, for messages: "train.jsonl, line 7". */
export type Source = string;

const text = z.string();

/** `text`: every token is learned. `prompt` and `completion`: only the completion is. Other fields are ignored. */
export const recordSchema = z.union([
  z.looseObject({ prompt: text, completion: text }),
  z.looseObject({ text }),
]);
export type TextRecord = z.infer<typeof recordSchema>;

/** Parses one record. Throws `L-RECORD`, naming its place and what is wrong. */
export function parseRecord(value: unknown, source: Source): TextRecord {
  const parsed = recordSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const found =
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? `the fields ${Object.entries(value)
          .map(([key, field]) => `${key} (${Array.isArray(field) ? "array" : typeof field})`)
          .join(", ")}`
      : `${Array.isArray(value) ? "an array" : JSON.stringify(value)}`;
  throw new SidenetError(
    "L-RECORD",
    `${source}: a record is {"text": "..."} or {"prompt": "...", "completion": "..."}, this one has ${found}. ` +
      "Map other fields with --text, or --prompt and --completion.",
  );
}

/** What reading records needs of a tokenizer. */
export interface Encoder {
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
}

/** One sequence; labels are aligned with inputIds, -100 is not scored. */
export interface TokenRecord {
  readonly inputIds: readonly number[];
  readonly labels: readonly number[];
  /** Ids of the sequences that share a row; attention stays inside each. Left out where there is one. */
  readonly segments?: readonly number[];
  readonly source: Source;
}

export interface EncodeOptions {
  readonly bosId: number | null;
  /** Ends each record and is learned with it; null: nothing does. */
  readonly eosId: number | null;
  /** Tokens a record may have. */
  readonly maxLength: number;
  /** Cut longer records instead of refusing them. */
  readonly cut: boolean;
}

/**
 * Tokens and labels of a record. Prompt and completion are encoded apart, so that their border is a token's border.
 * Throws `L-TOO-LONG`, or `L-NOTHING-TO-LEARN` when no label is left after the first token.
 */
export function encodeRecord(
  record: TextRecord,
  source: Source,
  encoder: Encoder,
  options: EncodeOptions,
): TokenRecord {
  const { bosId, eosId, maxLength, cut } = options;
  const plain = { addSpecialTokens: false };
  const [prompt, learned] =
    "completion" in record && "prompt" in record
      ? [encoder.encode(record.prompt as string, plain), encoder.encode(record.completion as string, plain)]
      : [[], encoder.encode(record.text as string, plain)];
  const start = bosId === null ? prompt : [bosId, ...prompt];
  const end = eosId === null ? learned : [...learned, eosId];
  const inputIds = [...start, ...end];
  if (inputIds.length > maxLength && !cut) {
    throw new SidenetError(
      "L-TOO-LONG",
      `${source}: ${inputIds.length} tokens are more than the model's context of ${maxLength}. Shorten the record, or cut ` +
        "long ones with --max-length.",
    );
  }
  const labels = [...start.map(() => -100), ...end].slice(0, maxLength);
  // The first token is predicted from nothing, so its label never counts.
  if (!labels.slice(1).some((label) => label !== -100)) {
    throw new SidenetError(
      "L-NOTHING-TO-LEARN",
      `${source}: nothing is left to learn from in its first ${maxLength} tokens (the prompt takes ${start.length}). ` +
        "Raise --max-length or remove the record.",
    );
  }
  return { inputIds: inputIds.slice(0, maxLength), labels, source };
}
