import { SidenetError } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type ByteSource, memorySource } from "../src/formats/byte-source.ts";
import { type GgufValue, readGguf } from "../src/formats/gguf.ts";
import { checkpointFromGguf } from "../src/formats/gguf-checkpoint.ts";
import { modelConfigFromGguf } from "../src/formats/gguf-config.ts";
import { encodeGgufHeader, ggufStrings } from "../src/formats/gguf-write.ts";
import { codeOf } from "./code-of.ts";
import {
  buildGguf,
  type Field,
  f32Bytes,
  type GgufSpec,
  llamaMetadata,
  llamaTensors,
  numbers,
  strings,
  type TensorSpec,
} from "./gguf-builder.ts";

const read = (bytes: Uint8Array) => readGguf(memorySource(bytes, "test.gguf"));

/** Everything a user would do with a file: config, names, values. */
async function readAll(bytes: Uint8Array): Promise<void> {
  const gguf = await read(bytes);
  const checkpoint = checkpointFromGguf(gguf, await modelConfigFromGguf(gguf));
  for (const tensor of checkpoint.tensors.values()) await tensor.readFloat32();
}

const scalar: fc.Arbitrary<Field> = fc.oneof(
  fc.integer({ min: 0, max: 255 }).map((value): Field => ({ type: "u8", value })),
  fc.integer({ min: -128, max: 127 }).map((value): Field => ({ type: "i8", value })),
  fc.integer({ min: 0, max: 65535 }).map((value): Field => ({ type: "u16", value })),
  fc.integer({ min: -32768, max: 32767 }).map((value): Field => ({ type: "i16", value })),
  fc.integer({ min: 0, max: 2 ** 32 - 1 }).map((value): Field => ({ type: "u32", value })),
  fc.integer().map((value): Field => ({ type: "i32", value })),
  fc.float().map((value): Field => ({ type: "f32", value })),
  fc.double().map((value): Field => ({ type: "f64", value })),
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map((value): Field => ({ type: "u64", value })),
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map((value): Field => ({ type: "i64", value })),
  fc.boolean().map((value): Field => ({ type: "bool", value })),
  fc.string({ unit: "binary" }).map((value): Field => ({ type: "string", value })),
);
const list: fc.Arbitrary<Field> = fc.oneof(
  fc.array(fc.string({ unit: "binary" })).map(strings),
  fc.array(fc.integer()).map((values) => numbers("i32", values)),
);
const nested: fc.Arbitrary<Field> = fc
  .array(list)
  .map((value): Field => ({ type: "array", of: "array", value }));
const metadata = fc.dictionary(fc.string({ unit: "binary" }), fc.oneof(scalar, list, nested), { maxKeys: 5 });

/** What the reader should give for a field: 64-bit integers are numbers where those are exact. */
function expectedValue(field: Field): GgufValue {
  if (field.type === "array") return field.value.map(expectedValue);
  if (typeof field.value !== "bigint") return field.value;
  return Number.isSafeInteger(Number(field.value)) ? Number(field.value) : field.value;
}

describe("a GGUF header", () => {
  it("gives back metadata of every kind", async () => {
    await fc.assert(
      fc.asyncProperty(metadata, fc.constantFrom(2, 3), async (fields, version) => {
        const gguf = await read(buildGguf({ version, metadata: fields }));
        expect(gguf.version).toBe(version);
        const expected = Object.entries(fields).map(([key, field]) => [key, expectedValue(field)]);
        expect([...gguf.metadata]).toEqual(expected);
      }),
    );
  });

  it("keeps a byte order mark at the start of a text", async () => {
    const gguf = await read(buildGguf({ metadata: { tokens: strings(["\ufeff", "\ufeffa"]) } }));
    expect(gguf.metadata.get("tokens")).toEqual(["\ufeff", "\ufeffa"]);
  });

  it("gives tensors outermost axis first, at their offset in the file", async () => {
    const first = f32Bytes([1, 2, 3, 4, 5, 6]);
    const gguf = await read(
      buildGguf({
        metadata: { "general.alignment": { type: "u32", value: 64 } },
        alignment: 64,
        tensors: [
          { name: "a", typeId: 0, shape: [2, 3], bytes: first },
          { name: "b", typeId: 0, shape: [], bytes: f32Bytes([7]) },
        ],
      }),
    );
    const [a, b] = ["a", "b"].map((name) => gguf.tensors.get(name));
    expect(a?.shape).toEqual([2, 3]);
    expect(await gguf.source.read(a?.offset ?? 0, 24)).toEqual(first);
    expect(b?.offset).toBe((a?.offset ?? 0) + 64);
  });

  it("is read through a window: a few reads for thousands of texts, and none of the weights", async () => {
    const tokens = Array.from({ length: 20_000 }, (_, i) => `token number ${i}`);
    const weights: TensorSpec = { name: "w", typeId: 0, shape: [500_000], bytes: new Uint8Array(2_000_000) };
    const bytes = buildGguf({ metadata: { tokens: strings(tokens) }, tensors: [weights] });
    const reads: number[] = [];
    const inner = memorySource(bytes);
    const source: ByteSource = {
      ...inner,
      read: (offset, length) => {
        reads.push(length);
        return inner.read(offset, length);
      },
    };
    const gguf = await readGguf(source);
    expect(gguf.metadata.get("tokens")).toEqual(tokens);
    expect(reads.length).toBeLessThan(5);
  });
});

describe("a malformed GGUF file", () => {
  const good: GgufSpec = { metadata: llamaMetadata(), tensors: llamaTensors() };
  const bytes = buildGguf(good);
  const poke = (at: number, ...values: number[]) => {
    const copy = bytes.slice();
    copy.set(values, at);
    return copy;
  };
  const tensor = (change: Partial<TensorSpec>) =>
    buildGguf({ tensors: [{ name: "t", typeId: 0, shape: [4], bytes: f32Bytes([1, 2, 3, 4]), ...change }] });
  const deep = (depth: number): Field =>
    depth === 0 ? numbers("u32", []) : { type: "array", of: "array", value: [deep(depth - 1)] };

  it.each<[string, Uint8Array, string]>([
    ["empty", new Uint8Array(0), "L-GGUF-MAGIC"],
    ["another format", new TextEncoder().encode("PK\u0003\u0004 this is a zip file"), "L-GGUF-MAGIC"],
    ["only the magic", bytes.subarray(0, 4), "L-GGUF-TRUNCATED"],
    ["version 1", poke(4, 1), "L-GGUF-VERSION"],
    ["version 9", poke(4, 9), "L-GGUF-VERSION"],
    ["big-endian", poke(4, 0, 0, 0, 3), "L-GGUF-ENDIAN"],
    ["a tensor count that lies", poke(8, 255, 255, 255, 255, 255, 255, 255, 255), "L-GGUF-TRUNCATED"],
    ["a metadata count that lies", poke(16, 0, 0, 0, 0, 1), "L-GGUF-TRUNCATED"],
    ["a key length that lies", poke(24, 0, 0, 0, 0, 0, 1), "L-GGUF-TRUNCATED"],
    ["arrays in arrays in arrays", buildGguf({ metadata: { a: deep(6) } }), "L-GGUF-METADATA"],
    [
      "an alignment of 3",
      buildGguf({ metadata: { "general.alignment": { type: "u32", value: 3 } } }),
      "L-GGUF-METADATA",
    ],
    [
      "an alignment of 0.5",
      buildGguf({ metadata: { "general.alignment": { type: "f32", value: 0.5 } } }),
      "L-GGUF-METADATA",
    ],
    ["a type nobody knows", tensor({ typeId: 77 }), "L-GGUF-TYPE"],
    ["five axes", tensor({ shape: [1, 1, 1, 1, 4] }), "L-GGUF-TENSOR"],
    ["a row that is no whole block", tensor({ typeId: 3 }), "L-GGUF-TENSOR"],
    ["a tensor past the end", tensor({ shape: [400] }), "L-GGUF-TRUNCATED"],
    ["a shape past all numbers", tensor({ shape: [2 ** 40, 2 ** 40] }), "L-GGUF-TENSOR"],
  ])("%s", async (_, file, code) => {
    expect(await codeOf(read(file))).toBe(code);
  });

  it("names a key or a tensor that stands twice, and tensors that overlap", async () => {
    const one: TensorSpec = { name: "t", typeId: 0, shape: [8], bytes: f32Bytes([1, 2, 3, 4, 5, 6, 7, 8]) };
    expect(await codeOf(read(buildGguf({ tensors: [one, one] })))).toBe("L-GGUF-TENSOR");
    const overlapping = buildGguf({
      tensors: [
        { ...one, shape: [16] },
        { ...one, name: "u" },
      ],
    });
    expect(await codeOf(read(overlapping))).toBe("L-GGUF-TENSOR");
  });

  it("cut at any byte gives a typed error", async () => {
    for (let length = 0; length < bytes.length - 32; length++) {
      expect(await codeOf(readAll(bytes.subarray(0, length)))).toMatch(/^L-GGUF-(MAGIC|TRUNCATED)$/);
    }
  });

  it("with random bytes changed is read or gives a typed error", async () => {
    const change = fc.tuple(fc.nat(bytes.length - 1), fc.nat(255));
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 5 }), async (changes) => {
        const copy = bytes.slice();
        for (const [at, value] of changes) copy[at] = value;
        await readAll(copy).catch((error: unknown) => {
          if (!(error instanceof SidenetError)) throw error;
        });
      }),
      { numRuns: 1000 },
    );
  });

  it("never asks its source for bytes outside", async () => {
    const source = memorySource(new Uint8Array(10), "s");
    for (const [offset, length] of [
      [-1, 1],
      [0, 11],
      [10, 1],
      [0.5, 1],
      [0, Number.NaN],
      [2 ** 60, 2 ** 60],
    ]) {
      await expect(source.read(offset, length)).rejects.toThrow(/L-RANGE/);
    }
    await expect(source.read(10, 0)).resolves.toHaveLength(0);
  });
});

describe("a large vocabulary", () => {
  it("is written and read, though it has more tokens than a call can have arguments", async () => {
    const tokens = Array.from({ length: 200_000 }, (_, id) => `t${id}`);
    const header = encodeGgufHeader({ metadata: { "tokenizer.ggml.tokens": ggufStrings(tokens) } });
    const { metadata } = await readGguf(memorySource(header, "large.gguf"));
    expect(metadata.get("tokenizer.ggml.tokens")).toEqual(tokens);
  });
});
