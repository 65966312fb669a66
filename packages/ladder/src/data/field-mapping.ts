/** The fields of records, and their names in the data. */

/** Fields that a record, or a row of an evaluation task, may have; others are ignored. */
export const RECORD_FIELDS = [
  "text",
  "prompt",
  "completion",
  "messages",
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
  ["messages", "tools"],
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

/** The record with its fields under their own names. */
export function mapFields(value: unknown, fields: FieldMapping): unknown {
  const mapped = Object.keys(fields) as RecordField[];
  if (mapped.length === 0 || value === null || typeof value !== "object") return value;
  const group = FIELD_GROUPS.filter((names) => mapped.some((name) => names.includes(name))).flat();
  return Object.fromEntries(
    group.flatMap((name) => {
      const found = fieldAt(value, fields[name] ?? name);
      return found === undefined ? [] : [[name, found]];
    }),
  );
}
