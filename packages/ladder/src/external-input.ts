/** Values from outside (files, answers of servers), checked by schemas. */
import type * as z from "zod";

/** What a schema found, in one line: "hidden_size: Invalid input; rope.theta: Too small". */
const problemsOf = ({ issues }: z.ZodError): string =>
  issues.map(({ path, message }) => (path.length > 0 ? `${path.join(".")}: ${message}` : message)).join("; ");

/** The value as its schema types it. Throws the error that `refuse` makes, or throws, for the problems with it. */
export function checked<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  refuse: (problems: string) => Error,
): z.infer<Schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw refuse(problemsOf(parsed.error));
}
