/** Lists of records that need not be in memory. */
import { type FieldMapping, mapFields, parseRecord, type Source, type TextRecord } from "./records.ts";

/** A list whose items are read on request. */
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

/** A list of records. */
export type RecordList = Indexed<StoredRecord>;

/** Makes a record from the fields of a row. Throws `L-RECORD`. */
export type RecordParser = (value: unknown, source: Source) => TextRecord;

/** The parser for records whose fields have other names in the data. It throws `L-RECORD` for a row that is no record. */
export const recordParser =
  (fields: FieldMapping): RecordParser =>
  (value, source) =>
    parseRecord(mapFields(value, fields), source, value);

/** The items at these indices. */
export const pickItems = <T>(list: Indexed<T>, indices: readonly number[]): Indexed<T> => ({
  length: indices.length,
  get: (index) => list.get(indices[index]),
});
