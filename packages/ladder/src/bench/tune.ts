/** Finds the best tile table for an adapter, by timing its candidates alternately on matmuls of several shapes. */
import {
  defaultTiles,
  type Tensor,
  TILE_CANDIDATES,
  type Tiles,
  tunableTiles,
  type WebGpuDevice,
} from "@sidenet/tensor";
import { calibrate } from "./measure.ts";
import { makeOperand } from "./operands.ts";

type TileName = keyof Tiles;

type Extents = readonly [M: number, K: number, N: number];

/** Extents of x[M,K] · w[N,K]ᵀ around each decision; for attention, M tokens with N heads of size K, each with its own keys. */
const PROBES: { readonly [K in TileName]: readonly Extents[] } = {
  rowsBlock: [
    [16, 576, 1536],
    [64, 576, 576],
    [256, 576, 576],
    [256, 1536, 576],
  ],
  fewRows: [1, 2, 3, 4, 6, 8].map((M) => [M, 2048, 2048] as const),
  minLargeBlocks: [
    [128, 4096, 4096],
    [256, 2048, 2048],
    [512, 1024, 4096],
    [1024, 1024, 1024],
    [2048, 2048, 2048],
  ],
  splitKBlocks: [
    [64, 8192, 2048],
    [256, 576, 576],
    [256, 1536, 576],
    [512, 3584, 448],
    [72, 4096, 576],
  ],
  subgroupMatrixRows: [16, 24, 32, 48, 64, 96, 128].map((M) => [M, 2048, 2048] as const),
  subgroupMatrixQueries: [16, 48, 128, 512, 2048].map((M) => [M, 128, 8] as const),
};

/** A candidate replaces the default if it takes less time by this share, over all shapes. */
const GAIN = 0.03;
const ROUNDS = 7;

/** A candidate, and its time as a multiple of the default's, as the geometric mean over the shapes. */
interface TriedTile {
  readonly value: number;
  readonly ratio: number;
}

interface TunedTile {
  readonly name: TileName;
  readonly chosen: number;
  readonly tried: readonly TriedTile[];
}

interface Tuning {
  readonly tiles: Tiles;
  readonly choices: readonly TunedTile[];
}

/** The best candidate if it is clearly better than `standard`, to which ratios refer; else `standard`. */
export function chooseTile(standard: number, tried: readonly TriedTile[]): number {
  const best = tried.reduce((a, b) => (b.ratio < a.ratio ? b : a));
  return best.ratio < 1 - GAIN ? best.value : standard;
}

/** Lowest time of a call by candidate in milliseconds, timed alternately. */
async function timeCandidates(
  device: WebGpuDevice,
  call: () => void,
  candidates: readonly Tiles[],
): Promise<number[]> {
  const least = candidates.map(() => Number.POSITIVE_INFINITY);
  const calls: number[] = [];
  for (const tiles of candidates) {
    device.retile(tiles);
    calls.push(await calibrate(device, call)); // compiles the kernels
  }
  for (let round = 0; round < ROUNDS; round++) {
    for (const [i, tiles] of candidates.entries()) {
      device.retile(tiles);
      const from = performance.now();
      for (let j = 0; j < calls[i]; j++) call();
      await device.synchronize();
      least[i] = Math.min(least[i], (performance.now() - from) / calls[i]);
    }
  }
  return least;
}

/** The operands of a probe, and its call. */
function makeProbe(
  device: WebGpuDevice,
  name: TileName,
  [M, K, N]: Extents,
): { readonly operands: readonly Tensor[]; readonly call: () => void } {
  const fill = { kind: "normal" } as const;
  const make = (shape: readonly number[], i: number, dtype: "f32" | "f16" = "f32") =>
    makeOperand(device, name, { shape, dtype, fill }, i);
  if (name === "subgroupMatrixQueries") {
    const operands = [0, 1, 2].map((i) => make([1, M, N, K], i));
    return { operands, call: () => device.ops.attention(operands[0], operands[1], operands[2]).dispose() };
  }
  const operands = [make([M, K], 0), make([N, K], 1, name === "subgroupMatrixRows" ? "f16" : "f32")];
  return { operands, call: () => device.ops.linear(operands[0], operands[1]).dispose() };
}

/** Times the candidates of one entry, with the other entries from `tiles`. */
async function tuneOne(device: WebGpuDevice, name: TileName, tiles: Tiles): Promise<TunedTile> {
  const values = TILE_CANDIDATES[name];
  const standard = defaultTiles(device.profile)[name];
  const candidates = values.map((value) => ({ ...tiles, [name]: value }));
  const logs = values.map(() => 0);
  for (const extents of PROBES[name]) {
    const { operands, call } = makeProbe(device, name, extents);
    try {
      const times = await timeCandidates(device, call, candidates);
      const before = times[values.indexOf(standard)];
      for (const [i, ms] of times.entries()) logs[i] += Math.log(ms / before) / PROBES[name].length;
    } finally {
      for (const tensor of operands) tensor.dispose();
    }
  }
  const tried = values.map((value, i) => ({ value, ratio: Math.exp(logs[i]) }));
  return { name, chosen: chooseTile(standard, tried), tried };
}

/** Tunes every entry that the device uses, and sets the result on the device. Throws what the device throws. */
export async function tuneTiles(
  device: WebGpuDevice,
  onChoice: (choice: TunedTile) => void,
): Promise<Tuning> {
  let tiles = defaultTiles(device.profile);
  const choices: TunedTile[] = [];
  for (const name of tunableTiles(device.profile)) {
    const choice = await tuneOne(device, name, tiles);
    tiles = { ...tiles, [name]: choice.chosen };
    choices.push(choice);
    onChoice(choice);
  }
  device.retile(tiles);
  return { tiles, choices };
}
