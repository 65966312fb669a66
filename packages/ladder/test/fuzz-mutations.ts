/** Changes to valid files that make them what damaged, cut and malicious ones are. */
import type { TestRandom } from "@sidenet/tensor";

/** Counts, offsets and sizes that parsers stumble over. */
const NUMBERS = [
  0,
  1,
  -1,
  7,
  127,
  128,
  255,
  256,
  65535,
  65536,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  2 ** 40,
  2 ** 53 - 1,
  2 ** 53,
  1e308,
  -1e308,
  0.5,
  1e-320,
];
const BIG = [
  0n,
  1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 32n,
  2n ** 48n,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 64n - 1n,
];

const deep = (depth: number): unknown => {
  let value: unknown = 1;
  for (let i = 0; i < depth; i++) value = [value];
  return value;
};

const VALUES: readonly (() => unknown)[] = [
  () => null,
  () => true,
  () => "",
  () => "../../outside.safetensors",
  () => "/etc/passwd",
  () => "..",
  () => "a\u0000b",
  () => "\ud800",
  () => "x".repeat(5000),
  () => "(((((",
  () => "(.*)*(.*)*x",
  () => [],
  () => ({}),
  () => ({ __proto__: 1, constructor: 2, toString: 3 }),
  () => Array.from({ length: 2000 }, (_, i) => i),
  () => deep(500),
];

/** Some bytes changed, cut, repeated, moved, or overwritten with numbers that matter. */
export function mutateBytes(pick: TestRandom, source: Uint8Array, other: Uint8Array = source): Uint8Array {
  let bytes = Uint8Array.from(source);
  for (let rounds = pick.int(1, 6); rounds > 0; rounds--) {
    if (bytes.length === 0) return bytes;
    const at = pick.chance(0.5)
      ? pick.int(0, Math.min(bytes.length, 256) - 1)
      : pick.int(0, bytes.length - 1);
    const length = pick.int(1, Math.min(64, bytes.length - at));
    const join = (...parts: Uint8Array[]) => Uint8Array.from(parts.flatMap((part) => [...part]));
    switch (pick.int(0, 7)) {
      case 0:
        bytes[at] ^= 1 << pick.int(0, 7);
        break;
      case 1:
        bytes[at] = pick.oneOf([0, 1, 0x22, 0x2d, 0x5b, 0x7b, 0x7f, 0x80, 0xff, pick.int(0, 255)]);
        break;
      case 2: {
        const view = new DataView(bytes.buffer);
        if (at + 8 <= bytes.length) view.setBigUint64(at, pick.oneOf(BIG), true);
        break;
      }
      case 3: {
        const view = new DataView(bytes.buffer);
        if (at + 4 <= bytes.length) view.setUint32(at, pick.oneOf([...NUMBERS, bytes.length]) >>> 0, true);
        break;
      }
      case 4:
        bytes = bytes.slice(0, at);
        break;
      case 5:
        bytes = join(bytes.subarray(0, at), bytes.subarray(at + length));
        break;
      case 6:
        bytes = join(bytes.subarray(0, at + length), bytes.subarray(at));
        break;
      default: {
        const from = pick.int(0, Math.max(0, other.length - length));
        bytes = join(bytes.subarray(0, at), other.subarray(from, from + length), bytes.subarray(at));
      }
    }
  }
  return bytes;
}

/** A node of a value: what holds it, and under which key. */
type Place = { readonly holder: Record<string, unknown>; readonly key: string };

function placesOf(value: unknown, found: Place[] = [], limit = 3000): Place[] {
  if (typeof value !== "object" || value === null) return found;
  for (const key of Object.keys(value)) {
    if (found.length >= limit) break;
    found.push({ holder: value as Record<string, unknown>, key });
    placesOf((value as Record<string, unknown>)[key], found, limit);
  }
  return found;
}

const randomValue = (pick: TestRandom): unknown =>
  pick.chance(0.5) ? pick.oneOf(NUMBERS) : pick.oneOf(VALUES)();

/** A JSON value with some nodes replaced, removed, renamed or exchanged. */
export function mutateValue(pick: TestRandom, source: unknown): unknown {
  if (pick.chance(0.02)) return randomValue(pick);
  const value = structuredClone(source);
  for (let rounds = pick.int(1, 4); rounds > 0; rounds--) {
    const places = placesOf(value);
    if (places.length === 0) return randomValue(pick);
    // Values near the top matter most, and a vocabulary has thousands of leaves.
    const { holder, key } = places[Math.floor(places.length * pick.unit() ** 2)];
    switch (pick.int(0, 4)) {
      case 0:
        delete holder[key];
        break;
      case 1:
        holder[pick.oneOf(["extra", "__proto__x", "", "weight", "type"])] = holder[key];
        break;
      case 2: {
        const other = places[pick.int(0, places.length - 1)];
        holder[key] = structuredClone(other.holder[other.key]);
        break;
      }
      default:
        holder[key] = randomValue(pick);
    }
  }
  return value;
}

/** A JSON text, changed as a value or as text. */
export function mutateJson(pick: TestRandom, source: unknown): string {
  const text = JSON.stringify(mutateValue(pick, source)) ?? "";
  if (pick.chance(0.8)) return text;
  return new TextDecoder().decode(mutateBytes(pick, new TextEncoder().encode(text)));
}
