import { SidenetError } from "@sidenet/tensor";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { memorySource } from "../src/formats/byte-source.ts";
import { type Checkpoint, requireTensor } from "../src/formats/checkpoint.ts";
import { openSafetensors } from "../src/formats/safetensors.ts";
import { openSafetensorsShards } from "../src/formats/safetensors-shards.ts";
import { concatBytes, encodeSafetensors, type WritableTensor } from "../src/formats/safetensors-write.ts";
import { codeOf } from "./code-of.ts";

const shape = fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 3 });
const sizeOf = (extents: readonly number[]) => extents.reduce((product, n) => product * n, 1);

const tensor: fc.Arbitrary<WritableTensor> = fc
  .tuple(shape, fc.constantFrom("F32", "F16", "BF16", "I32", "U8"), fc.infiniteStream(fc.integer()))
  .map(([extents, dtype, numbers]) => {
    const words = [...numbers.take(sizeOf(extents))];
    if (dtype === "F32")
      return { dtype, shape: extents, data: new Float32Array(Int32Array.from(words).buffer) };
    if (dtype === "I32") return { dtype, shape: extents, data: Int32Array.from(words) };
    if (dtype === "U8") return { dtype, shape: extents, data: Uint8Array.from(words) };
    return { dtype, shape: extents, data: Uint16Array.from(words) };
  });
const name = fc.string({ unit: "binary" }).filter((text) => text !== "__metadata__");
const tensors = fc.dictionary(name, tensor, { maxKeys: 6 });
const metadata = fc.dictionary(fc.string({ unit: "binary" }), fc.string({ unit: "binary" }), { maxKeys: 3 });

const bytesOf = ({ data }: WritableTensor) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
const open = (bytes: Uint8Array) => openSafetensors(memorySource(bytes, "test.safetensors"));

/** A file with any header text; `data` follows it. */
function fileOf(header: string | object, data = new Uint8Array(0)): Uint8Array {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const head = new Uint8Array(8);
  new DataView(head.buffer).setBigUint64(0, BigInt(json.length), true);
  return concatBytes([head, json, data]);
}

/** Reads everything; only SidenetErrors may come out. */
async function readAll(bytes: Uint8Array): Promise<void> {
  try {
    const checkpoint: Checkpoint = await open(bytes);
    for (const one of checkpoint.tensors.values()) await one.read();
  } catch (error) {
    if (!(error instanceof SidenetError)) throw error;
  }
}

describe("safetensors", () => {
  it("reads back what was written: names, types, shapes, bytes, metadata", async () => {
    await fc.assert(
      fc.asyncProperty(tensors, metadata, async (written, texts) => {
        const checkpoint = await open(concatBytes(encodeSafetensors(written, texts)));
        expect([...checkpoint.tensors.keys()].sort()).toEqual(Object.keys(written).sort());
        expect(Object.fromEntries(checkpoint.metadata)).toEqual({ ...texts });
        for (const [key, expected] of Object.entries(written)) {
          const found = requireTensor(checkpoint, key, expected.shape);
          expect(found.dtype).toBe(expected.dtype);
          expect(await found.readBytes()).toEqual(bytesOf(expected));
        }
      }),
    );
  });

  it("writes equal bytes for equal content, every tensor aligned to its type", async () => {
    await fc.assert(
      fc.asyncProperty(tensors, async (written) => {
        const chunks = encodeSafetensors(written);
        const reversed = Object.fromEntries(Object.entries(written).reverse());
        expect(concatBytes(encodeSafetensors(reversed))).toEqual(concatBytes(chunks));
        expect(chunks[0].length % 8).toBe(0);
      }),
    );
  });

  it("reads data that starts at any offset", async () => {
    const values = Float32Array.of(1, -2, 3.5);
    for (let pad = 0; pad < 8; pad++) {
      const header =
        JSON.stringify({ x: { dtype: "F32", shape: [3], data_offsets: [0, 12] } }) + " ".repeat(pad);
      const checkpoint = await open(fileOf(header, new Uint8Array(values.buffer)));
      expect(await requireTensor(checkpoint, "x").readFloat32()).toEqual(values);
    }
  });

  it("widens float16 and bfloat16", async () => {
    const values = Float32Array.of(0.5, -1.25, 1024);
    const written = encodeSafetensors({
      half: { dtype: "F16", shape: [3], data: values },
      brain: { dtype: "BF16", shape: [3], data: values },
      full: { dtype: "F32", shape: [3], data: values },
    });
    const { tensors: found } = await open(concatBytes(written));
    for (const one of found.values()) {
      expect(await one.readFloat32()).toEqual(values);
    }
  });

  it("refuses floats from integers, and types it only knows by name, when they are read", async () => {
    const entry = (dtype: string) => ({ x: { dtype, shape: [1], data_offsets: [0, 8] } });
    const long = await open(fileOf(entry("I64"), new Uint8Array(8)));
    expect(await codeOf(requireTensor(long, "x").read())).toBe("L-DTYPE");
    const bytes = await open(
      concatBytes(encodeSafetensors({ x: { dtype: "U8", shape: [0], data: new Uint8Array(0) } })),
    );
    expect(await codeOf(requireTensor(bytes, "x").readFloat32())).toBe("L-DTYPE");
  });

  it("names a tensor that is missing or has another shape", async () => {
    const checkpoint = await open(
      concatBytes(encodeSafetensors({ x: { dtype: "U8", shape: [1], data: new Uint8Array(1) } })),
    );
    expect(() => requireTensor(checkpoint, "y")).toThrow(/L-TENSOR-MISSING.*"y"/);
    expect(() => requireTensor(checkpoint, "x", [2])).toThrow(/L-TENSOR-SHAPE.*\[1\].*\[2\]/);
  });
});

describe("a malformed safetensors file", () => {
  const x = (entry: object) => ({ x: { dtype: "U8", shape: [4], data_offsets: [0, 4], ...entry } });
  const four = new Uint8Array(4);
  const y = { dtype: "U8", shape: [4], data_offsets: [2, 6] };
  const cases: [string, Uint8Array, string][] = [
    ["empty", new Uint8Array(0), "L-SAFETENSORS-TRUNCATED"],
    ["7 bytes", new Uint8Array(7), "L-SAFETENSORS-TRUNCATED"],
    ["header of length 0", new Uint8Array(8), "L-SAFETENSORS-HEADER"],
    ["header longer than the file", fileOf(x({})).subarray(0, 20), "L-SAFETENSORS-TRUNCATED"],
    ["header past the limit", new Uint8Array(16).fill(255), "L-SAFETENSORS-HEADER"],
    ["header that is no JSON", fileOf("{oops"), "L-SAFETENSORS-HEADER"],
    ["header that is an array", fileOf("[]"), "L-SAFETENSORS-HEADER"],
    ["header that is no UTF-8", Uint8Array.of(2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe), "L-SAFETENSORS-HEADER"],
    ["entry without a shape", fileOf({ x: { dtype: "U8", data_offsets: [0, 0] } }), "L-SAFETENSORS-HEADER"],
    ["negative extent", fileOf(x({ shape: [-4] }), four), "L-SAFETENSORS-HEADER"],
    ["unknown type", fileOf(x({ dtype: "Q7" }), four), "L-SAFETENSORS-HEADER"],
    ["type named like a property", fileOf(x({ dtype: "constructor" }), four), "L-SAFETENSORS-HEADER"],
    ["size that is not its shape's", fileOf(x({ shape: [3] }), four), "L-SAFETENSORS-OFFSETS"],
    [
      "shape past all numbers",
      fileOf(x({ shape: [2 ** 53 - 1, 2 ** 53 - 1] }), four),
      "L-SAFETENSORS-OFFSETS",
    ],
    ["stop before start", fileOf(x({ data_offsets: [4, 0] }), four), "L-SAFETENSORS-OFFSETS"],
    ["overlap", fileOf({ ...x({}), y }, new Uint8Array(6)), "L-SAFETENSORS-OFFSETS"],
    ["hole", fileOf(x({ data_offsets: [4, 8] }), new Uint8Array(8)), "L-SAFETENSORS-OFFSETS"],
    ["data behind the last tensor", fileOf(x({}), new Uint8Array(5)), "L-SAFETENSORS-OFFSETS"],
    ["data cut short", fileOf(x({}), new Uint8Array(3)), "L-SAFETENSORS-TRUNCATED"],
    ["metadata that is no text", fileOf({ __metadata__: { a: 1 } }), "L-SAFETENSORS-HEADER"],
    ["a name twice", fileOf(`{"x":${JSON.stringify(x({}).x)},"\\u0078":{}}`, four), "L-SAFETENSORS-HEADER"],
  ];
  it.each(cases)("%s", async (_, bytes, code) => {
    expect(await codeOf(open(bytes))).toBe(code);
  });

  const valid = concatBytes(
    encodeSafetensors(
      {
        "model.norm.weight": { dtype: "F32", shape: [3], data: Float32Array.of(1, 2, 3) },
        bits: { dtype: "F16", shape: [1, 3], data: Uint16Array.of(1, 2, 3) },
      },
      { format: "pt" },
    ),
  );

  it("cut at any byte gives a typed error", async () => {
    for (let length = 0; length < valid.length; length++) {
      expect(await codeOf(open(valid.subarray(0, length)))).toMatch(/^L-SAFETENSORS/);
    }
  });

  it("with random bytes changed parses or gives a typed error", async () => {
    const change = fc.tuple(fc.nat(valid.length - 1), fc.nat(255));
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), async (changes) => {
        const bytes = valid.slice();
        for (const [at, value] of changes) bytes[at] = value;
        await readAll(bytes);
      }),
      { numRuns: 1000 },
    );
  });
});

describe("shards", () => {
  /** A file that holds a tensor for each letter of its name. */
  const shardOf = (names: string) => {
    const tensor = { dtype: "U8", shape: [1], data: Uint8Array.of(7) } as const;
    return concatBytes(encodeSafetensors(Object.fromEntries([...names].map((name) => [name, tensor]))));
  };
  const openShard = (file: string) => open(shardOf(file.replace(".safetensors", "")));
  const join = (index: unknown) => openSafetensorsShards("index.json", index, openShard);

  it("are joined by their index", async () => {
    const checkpoint = await join({ weight_map: { a: "a.safetensors", b: "b.safetensors" } });
    expect([...checkpoint.tensors.keys()]).toEqual(["a", "b"]);
    expect(await requireTensor(checkpoint, "b").readBytes()).toEqual(Uint8Array.of(7));
  });

  it("give all that they hold, also what the index does not name", async () => {
    const checkpoint = await join({ weight_map: { a: "ax.safetensors", b: "b.safetensors" } });
    expect([...checkpoint.tensors.keys()]).toEqual(["a", "x", "b"]);
  });

  it.each([
    ["an index without a map", {}],
    ["a file outside the folder", { weight_map: { a: "../a.safetensors" } }],
    ["a tensor that its shard lacks", { weight_map: { c: "a.safetensors" } }],
    ["a tensor that is in another shard too", { weight_map: { a: "ab.safetensors", b: "b.safetensors" } }],
    [
      "a tensor in two shards that the index does not name",
      { weight_map: { a: "ax.safetensors", b: "bx.safetensors" } },
    ],
  ])("%s is refused", async (_, index) => {
    expect(await codeOf(join(index))).toBe("L-SAFETENSORS-INDEX");
  });
});
