/** The fields of records, and their names in the data. */
import { SidenetError } from "@sidenet/tensor";

/** Fields that a record, or a row of an evaluation task, may have; others are ignored. */
export const RECORD_FIELDS = [
  "text",
  "prompt",
  "completion",
  "messages",
  "system",
  "tools",
  "context",
  "question",
  "choices",
  "label",
  "answer",
  "solution",
  "first_error_step",
] as const;
/** The name of a field that `--map` takes. */
export type RecordField = (typeof RECORD_FIELDS)[number];

/** Fields that belong together: if one of a group is mapped, the record gets the fields of that group only. */
const FIELD_GROUPS: readonly (readonly RecordField[])[] = [
  ["text"],
  ["prompt", "completion"],
  ["messages", "system", "tools"],
  ["context", "question", "choices", "label"],
  ["question", "answer"],
  ["question", "solution", "label", "first_error_step"],
];

/** The names in the data of fields of a record; "choices.text" is a field within a field. */
export type FieldMapping = Readonly<Partial<Record<RecordField, string>>>;

function fieldAt(value: object, path: string): unknown {
  if (Object.hasOwn(value, path)) return (value as Record<string, unknown>)[path];
  return path.split(".").reduce<unknown>((inner, name) => {
    const isThere = inner !== null && typeof inner === "object" && Object.hasOwn(inner, name);
    return isThere ? (inner as Record<string, unknown>)[name] : undefined;
  }, value);
}

/**
 * The label as an index, where the choices have marks of their own, as those of ARC: `{"text": [...], "label": ["1", "2", ...]}`.
 * There "2" is the second, although digits count from 0 otherwise; beside letters a number is an index.
 */
function labelBy(marks: readonly unknown[], label: unknown, source: string): number {
  const index = marks.map(String).indexOf(String(label));
  if (index >= 0) return index;
  if (typeof label === "number" && marks.every((mark) => !/^\d+$/.test(String(mark)))) return label;
  throw new SidenetError(
    "L-RECORD",
    `${source}: its label ${JSON.stringify(label)} is none of its choices' own, ${JSON.stringify(marks)}. Correct it, or map label to ` +
      "the field that has the right one.",
  );
}

/** The record with its fields under their own names. Throws `L-RECORD` for a label that none of the choices has. */
export function mapFields(value: unknown, fields: FieldMapping, source: string): unknown {
  const mapped = Object.keys(fields) as RecordField[];
  if (mapped.length === 0 || value === null || typeof value !== "object") return value;
  const group = FIELD_GROUPS.filter((names) => mapped.some((name) => names.includes(name))).flat();
  const record = Object.fromEntries(
    group.flatMap((name) => {
      const found = fieldAt(value, fields[name] ?? name);
      return found === undefined ? [] : [[name, found]];
    }),
  );
  const [, parent] = /^(.+)\.text$/.exec(fields.choices ?? "") ?? [];
  const marks = parent === undefined ? null : fieldAt(value, `${parent}.label`);
  if (Array.isArray(marks) && "label" in record) record.label = labelBy(marks, record.label, source);
  return record;
}
