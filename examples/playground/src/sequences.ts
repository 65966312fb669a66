/** Splits a text into sequences of tokens, some of them held out. */
import {
  encodeWindows,
  inMemory,
  jsonlRows,
  linesOf,
  parseRecord,
  splitRecords,
  type TokenDataset,
  type Tokenizer,
  type TokenRecord,
  textRows,
} from "@sidenet/ladder";
import { SidenetError } from "@sidenet/tensor";
import type { TextFile } from "./protocol.ts";

const HELD_OUT_SHARE = 0.1;
/** The limit of held-out sequences, so that an evaluation takes no longer than a few steps. */
const MAX_HELD_OUT = 16;
/** At least one sequence to train on, and one held out. */
const MIN_SEQUENCES = 2;
const LETTERS_PER_TOKEN = 2.7;

export interface Sequences {
  readonly train: readonly TokenRecord[];
  readonly heldOut: readonly TokenRecord[];
}

export const countTokens = (records: readonly TokenRecord[]): number =>
  records.reduce((sum, { inputIds }) => sum + inputIds.length, 0);

const all = ({ length, get }: TokenDataset): Promise<TokenRecord[]> =>
  Promise.all(Array.from({ length }, (_, i) => get(i)));

/** Sequences of at most `maxLength` tokens; the draw depends on the seed alone. Throws `L-DATA`, `L-RECORD`, `P-TEXT-SHORT`. */
export async function readSequences(
  { name, bytes }: TextFile,
  tokenizer: Tokenizer,
  { maxLength, seed }: { maxLength: number; seed: number },
): Promise<Sequences> {
  const lines = linesOf([bytes], name);
  const rows = /\.jsonl$/i.test(name) ? jsonlRows(lines, name) : textRows(lines, name);
  const encoding = { bosId: null, eosId: null, maxLength, cut: true };
  const records: TokenRecord[] = [];
  for await (const { value, source } of rows) {
    records.push(...encodeWindows(parseRecord(value, source), source, tokenizer, encoding));
  }
  const fewestTokens = MIN_SEQUENCES * maxLength;
  const tokens = countTokens(records);
  if (tokens < fewestTokens || records.length < MIN_SEQUENCES) {
    throw new SidenetError(
      "P-TEXT-SHORT",
      `the text has ${tokens} tokens, and a run needs at least ${fewestTokens}, about ` +
        `${Math.round(fewestTokens * LETTERS_PER_TOKEN)} letters. Give more of it, or make the sequences shorter.`,
    );
  }
  const amount = Math.min(MAX_HELD_OUT / records.length, HELD_OUT_SHARE);
  const parts = splitRecords(inMemory(records), { amount, isShare: true }, seed);
  return { train: await all(parts.train), heldOut: await all(parts.heldOut) };
}
