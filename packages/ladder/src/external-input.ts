/** Values from outside (files, answers of servers), checked by schemas. */
import type * as z from "zod";

/** What is wrong with a value, or within it, by its field; the field is empty for the value as a whole. */
export interface Fault {
  readonly field: string;
  readonly problem: string;
}

/** What a schema found, in one line: "hidden_size: Invalid input; rope.theta: Too small". */
const problemsOf = ({ issues }: z.ZodError): string =>
  issues.map(({ path, message }) => (path.length > 0 ? `${path.join(".")}: ${message}` : message)).join("; ");

const faultsOf = ({ issues }: z.ZodError): Fault[] =>
  issues.map(({ path: [field = "", ...within], message }) => ({
    field: String(field),
    problem: [...within.map(String), message].join(": "),
  }));

/** The value as its schema types it. Throws the error that `refuse` makes, or throws, for the problems with it. */
export function checked<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  refuse: (problems: string, faults: readonly Fault[]) => Error,
): z.infer<Schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw refuse(problemsOf(parsed.error), faultsOf(parsed.error));
}
