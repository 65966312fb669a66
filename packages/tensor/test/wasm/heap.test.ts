import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Heap } from "../../src/wasm/heap.ts";

const LINE = 64;

/** A heap from address 100 on, of at most so many bytes, and how far it reached. */
function heapUpTo(mostBytes: number) {
  const reached = { end: 0 };
  const heap = new Heap(100, (endBytes) => {
    if (endBytes > mostBytes) return false;
    reached.end = Math.max(reached.end, endBytes);
    return true;
  });
  return { heap, reached };
}

describe("the heap", () => {
  it("never gives one byte to two blocks, starts blocks at cache lines, and accounts for all it has", () => {
    const step = fc.record({
      size: fc.integer({ min: 1, max: 5000 }),
      free: fc.double({ min: 0, max: 1, noNaN: true }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const { heap, reached } = heapUpTo(200_000);
        const live: { address: number; size: number }[] = [];
        for (const { size, free } of steps) {
          if (free < 0.45 && live.length > 0) {
            const [block] = live.splice(Math.floor((free / 0.45) * live.length), 1);
            heap.release(block.address, block.size);
          } else {
            const address = heap.acquire(size);
            if (address === null) continue;
            expect(address % LINE).toBe(0);
            expect(address).toBeGreaterThanOrEqual(100);
            expect(address + size).toBeLessThanOrEqual(reached.end);
            for (const other of live) {
              expect(address >= other.address + other.size || other.address >= address + size).toBe(true);
            }
            live.push({ address, size });
          }
          const used = live.reduce((sum, { size }) => sum + Math.ceil(size / LINE) * LINE, 0);
          expect(heap.allBytes - heap.freeBytes).toBe(used);
        }
      }),
    );
  });

  it("gives a freed block to the next request of its size before it grows", () => {
    const { heap } = heapUpTo(1e6);
    const first = heap.acquire(1000)!;
    heap.acquire(64);
    heap.release(first, 1000);
    const all = heap.allBytes;
    expect(heap.acquire(1000)).toBe(first);
    expect(heap.allBytes).toBe(all);
  });

  it("joins free neighbours for a larger request, and grows the last one rather than leave it behind", () => {
    const { heap } = heapUpTo(1e6);
    const blocks = [640, 640, 640].map((size) => heap.acquire(size)!);
    heap.acquire(64);
    for (const address of blocks) heap.release(address, 640);
    expect(heap.acquire(1920)).toBe(blocks[0]);

    const { heap: other } = heapUpTo(1e6);
    const [early, , last] = [640, 64, 640].map((size) => other.acquire(size)!);
    other.release(early, 640);
    other.release(last, 640);
    expect(other.acquire(1216)).toBe(last); // 1280 bytes are free, but not in one piece
    expect(other.allBytes).toBe(640 + 64 + 1216);
  });

  it("says null when memory cannot grow, and goes on with what is freed", () => {
    const { heap } = heapUpTo(2000);
    const first = heap.acquire(1500)!;
    expect(heap.acquire(1000)).toBe(null);
    heap.release(first, 1500);
    expect(heap.acquire(1000)).toBe(first);
  });
});
