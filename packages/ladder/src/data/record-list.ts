/** Records by number, wherever they are. */
import { type FieldMapping, mapFields, parseRecord, type Source, type TextRecord } from "../records.ts";

/** Items by number; they may be read when they are asked for. */
export interface Indexed<T> {
  readonly length: number;
  /** The item at `index`, counted from 0. */
  get(index: number): Promise<T>;
}

/** A record, and where it came from. */
export interface StoredRecord {
  readonly record: TextRecord;
  readonly source: Source;
}

/** Records by number. */
export type RecordList = Indexed<StoredRecord>;

/** Makes a record of a row's fields. Throws `L-RECORD`. */
export type RecordParser = (value: unknown, source: Source) => TextRecord;

/** The parser for records whose fields may be called otherwise. */
export const recordParser =
  (fields: FieldMapping): RecordParser =>
  (value, source) =>
    parseRecord(mapFields(value, fields), source, value);

/** The items with these numbers. */
export const pickItems = <T>(list: Indexed<T>, indices: readonly number[]): Indexed<T> => ({
  length: indices.length,
  get: (index) => list.get(indices[index]),
});
