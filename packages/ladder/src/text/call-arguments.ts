/** The arguments of calls of tools in the form that a chat template writes: an object, or its JSON as a text. */
import { jinjaTemplate } from "./jinja.ts";
import { type ChatMessage, isObject } from "./messages.ts";

const toJson = jinjaTemplate("{{ value | tojson }}");
const MARK = "which-form-of-arguments";

/** Arguments as an object, unless they are a text that is not the JSON of one. */
function asObject(given: unknown): unknown {
  if (typeof given !== "string") return given;
  try {
    const parsed: unknown = JSON.parse(given);
    return isObject(parsed) ? parsed : given;
  } catch {
    return given;
  }
}

/** Arguments as a text: as it is, or the JSON of an object as Python writes it. */
const asText = (given: unknown): unknown => (isObject(given) ? toJson({ value: given }) : given);

function withMark(given: unknown): unknown {
  const named = asObject(given);
  return isObject(named) ? { ...named, [MARK]: MARK } : named;
}

function changeArguments(
  messages: readonly ChatMessage[],
  change: (given: unknown) => unknown,
): ChatMessage[] {
  const changed = (call: unknown): unknown => {
    if (!isObject(call)) return call;
    if (isObject(call.function)) return { ...call, function: changed(call.function) };
    return "arguments" in call ? { ...call, arguments: change(call.arguments) } : call;
  };
  return messages.map((message) =>
    Array.isArray(message.tool_calls) ? { ...message, tool_calls: message.tool_calls.map(changed) } : message,
  );
}

/**
 * The messages with the arguments of calls as objects; as texts if `write` then writes more of them. Data have either form, and a
 * template joins them to a text, or makes JSON of them, which of a text would be JSON of JSON.
 */
export function withArgumentsFor(
  write: (messages: readonly ChatMessage[]) => string,
  messages: readonly ChatMessage[],
): readonly ChatMessage[] {
  if (!messages.some(({ tool_calls: calls }) => Array.isArray(calls))) return messages;
  const marked = changeArguments(messages, withMark);
  const marks = (given: readonly ChatMessage[]): number => {
    try {
      return write(given).split(MARK).length;
    } catch {
      return 0;
    }
  };
  const wantsTexts = marks(marked) < marks(changeArguments(marked, asText));
  return changeArguments(messages, wantsTexts ? asText : asObject);
}
