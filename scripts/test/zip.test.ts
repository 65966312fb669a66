import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { deflateRawSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openZipEntry } from "../lib/zip.mjs";
import { temporaryFolder } from "../test-folder.ts";

interface Entry {
  name: string;
  content: Uint8Array;
  deflated: boolean;
  localExtraBytes: number;
}

/** An archive as the format's description has it, written apart from the reader. */
function zip(entries: Entry[], comment: string): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, content, deflated, localExtraBytes } of entries) {
    const packed = deflated ? deflateRawSync(content) : Buffer.from(content);
    const nameBytes = Buffer.from(name);
    const shared = Buffer.alloc(26); // from "version needed" to the length of the extra field
    shared.writeUInt16LE(20, 0);
    shared.writeUInt16LE(deflated ? 8 : 0, 4);
    shared.writeUInt32LE(packed.length, 14);
    shared.writeUInt32LE(content.length, 18);
    shared.writeUInt16LE(nameBytes.length, 22);
    const head = Buffer.concat([Buffer.from("PK\x03\x04"), shared]);
    head.writeUInt16LE(localExtraBytes, 28);
    parts.push(head, nameBytes, Buffer.alloc(localExtraBytes), packed);

    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(offset, 10);
    directory.push(Buffer.concat([Buffer.from("PK\x01\x02\x14\x00"), shared, tail, nameBytes]));
    offset += head.length + nameBytes.length + localExtraBytes + packed.length;
  }
  const directoryBytes = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.write("PK\x05\x06", 0);
  end.writeUInt16LE(entries.length, 8);
  end.writeUInt16LE(entries.length, 10);
  end.writeUInt32LE(directoryBytes.length, 12);
  end.writeUInt32LE(offset, 16);
  end.writeUInt16LE(comment.length, 20);
  return Buffer.concat([...parts, directoryBytes, end, Buffer.from(comment, "latin1")]);
}

const entry: fc.Arbitrary<Entry> = fc.record({
  name: fc.stringMatching(/^[a-z]{1,8}(\/[a-z.]{1,8})?$/),
  content: fc.uint8Array({ minLength: 1, maxLength: 300 }),
  deflated: fc.boolean(),
  localExtraBytes: fc.nat({ max: 40 }),
});

describe("openZipEntry", () => {
  const folder = temporaryFolder();
  const path = join(folder, "a.zip");

  const read = async (archive: Buffer, name: string) => {
    writeFileSync(path, archive);
    return buffer(await openZipEntry(path, name));
  };

  it("gives back every entry of any archive", async () => {
    const entries = fc.uniqueArray(entry, { selector: ({ name }) => name, minLength: 1, maxLength: 4 });
    const comment = fc.stringMatching(/^[ -~]{0,60}$/);
    await fc.assert(
      fc.asyncProperty(entries, comment, async (all, text) => {
        for (const { name, content } of all) {
          expect(await read(zip(all, text), name)).toEqual(Buffer.from(content));
        }
      }),
      { numRuns: 50 },
    );
  });

  it("refuses what is no whole archive, and names a missing entry", async () => {
    const [one] = fc.sample(entry, 1);
    const archive = zip([one!], "");
    await expect(read(archive, "absent")).rejects.toThrow("holds no absent");
    await expect(read(archive.subarray(0, archive.length - 1), one!.name)).rejects.toThrow(
      "not a zip archive",
    );
    await expect(read(Buffer.from("no zip"), "a")).rejects.toThrow("not a zip archive");
  });
});
