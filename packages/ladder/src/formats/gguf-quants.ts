/**
 * ggml's block formats to float32. A scale d is float16; every product below fits a double exactly, so each value is
 * rounded to float32 once, as ggml's own C code does. Source: the block layouts of ggml-quants.
 */
import { float16Table, float16ToFloat32, SidenetError } from "@sidenet/tensor";
import { asFloat32, asUint16, bfloat16ToFloat32 } from "./float-codec.ts";
import { GGUF_TYPE_IDS, GGUF_TYPES } from "./gguf-types.ts";

/** Decodes `blocks` consecutive blocks. half: f32[65536], the value of each float16. */
type BlockDecoder = (bytes: Uint8Array, blocks: number, out: Float32Array, half: Float32Array) => void;

/** Q4_0, 18 bytes for 32 elements: d, then 16 bytes of codes; the low nibbles are elements 0..15. x = d (q - 8) */
const q4_0: BlockDecoder = (bytes, blocks, out, half) => {
  for (let b = 0, at = 0, to = 0; b < blocks; b++, at += 18, to += 32) {
    const d = half[bytes[at] | (bytes[at + 1] << 8)];
    for (let j = 0; j < 16; j++) {
      const q = bytes[at + 2 + j];
      out[to + j] = d * ((q & 15) - 8);
      out[to + 16 + j] = d * ((q >> 4) - 8);
    }
  }
};

/** Q4_1, 20 bytes: d, m, codes as in Q4_0. x = d q + m */
const q4_1: BlockDecoder = (bytes, blocks, out, half) => {
  for (let b = 0, at = 0, to = 0; b < blocks; b++, at += 20, to += 32) {
    const d = half[bytes[at] | (bytes[at + 1] << 8)];
    const m = half[bytes[at + 2] | (bytes[at + 3] << 8)];
    for (let j = 0; j < 16; j++) {
      const q = bytes[at + 4 + j];
      out[to + j] = d * (q & 15) + m;
      out[to + 16 + j] = d * (q >> 4) + m;
    }
  }
};

/** Q5_0, 22 bytes: d, 32 fifth bits (bit j belongs to element j), low nibbles as in Q4_0. x = d (q - 16) */
const q5_0: BlockDecoder = (bytes, blocks, out, half) => {
  for (let b = 0, at = 0, to = 0; b < blocks; b++, at += 22, to += 32) {
    const d = half[bytes[at] | (bytes[at + 1] << 8)];
    const high = bytes[at + 2] | (bytes[at + 3] << 8) | (bytes[at + 4] << 16) | (bytes[at + 5] << 24);
    for (let j = 0; j < 16; j++) {
      const q = bytes[at + 6 + j];
      out[to + j] = d * (((q & 15) | (((high >>> j) & 1) << 4)) - 16);
      out[to + 16 + j] = d * (((q >> 4) | (((high >>> (j + 16)) & 1) << 4)) - 16);
    }
  }
};

/** Q5_1, 24 bytes: d, m, fifth bits and nibbles as in Q5_0. x = d q + m */
const q5_1: BlockDecoder = (bytes, blocks, out, half) => {
  for (let b = 0, at = 0, to = 0; b < blocks; b++, at += 24, to += 32) {
    const d = half[bytes[at] | (bytes[at + 1] << 8)];
    const m = half[bytes[at + 2] | (bytes[at + 3] << 8)];
    const high = bytes[at + 4] | (bytes[at + 5] << 8) | (bytes[at + 6] << 16) | (bytes[at + 7] << 24);
    for (let j = 0; j < 16; j++) {
      const q = bytes[at + 8 + j];
      out[to + j] = d * ((q & 15) | (((high >>> j) & 1) << 4)) + m;
      out[to + 16 + j] = d * ((q >> 4) | (((high >>> (j + 16)) & 1) << 4)) + m;
    }
  }
};

/** Q8_0, 34 bytes: d, then 32 signed bytes. x = d q */
const q8_0: BlockDecoder = (bytes, blocks, out, half) => {
  const signed = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let b = 0, at = 0, to = 0; b < blocks; b++, at += 34, to += 32) {
    const d = half[bytes[at] | (bytes[at + 1] << 8)];
    for (let j = 0; j < 32; j++) out[to + j] = d * signed[at + 2 + j];
  }
};

/**
 * Q4_K (144 bytes) and Q5_K (176) for 256 elements: d, dmin, 12 bytes holding eight 6-bit scales and eight 6-bit minima,
 * in Q5_K 32 bytes of fifth bits (bit g of byte j: element j of group g), then 4 x 32 bytes of nibbles, each byte an
 * element of an even group (low) and of the next odd group (high). x = d scale_g q - dmin min_g
 */
function decodeK(
  bytes: Uint8Array,
  blocks: number,
  out: Float32Array,
  half: Float32Array,
  fifthBits: boolean,
): void {
  const blockBytes = fifthBits ? 176 : 144;
  for (let b = 0, at = 0, to = 0; b < blocks; b++, at += blockBytes, to += 256) {
    const d = half[bytes[at] | (bytes[at + 1] << 8)];
    const dmin = half[bytes[at + 2] | (bytes[at + 3] << 8)];
    const scales = at + 4;
    const nibbles = at + (fifthBits ? 48 : 16);
    for (let g = 0; g < 8; g++) {
      const packed = bytes[scales + 4 + g];
      const scale = g < 4 ? bytes[scales + g] & 63 : (packed & 15) | ((bytes[scales + g - 4] >> 6) << 4);
      const min = g < 4 ? packed & 63 : (packed >> 4) | ((bytes[scales + g] >> 6) << 4);
      const shift = (g & 1) * 4;
      for (let j = 0; j < 32; j++) {
        const low = (bytes[nibbles + (g >> 1) * 32 + j] >> shift) & 15;
        const q = fifthBits ? low | (((bytes[at + 16 + j] >> g) & 1) << 4) : low;
        out[to + g * 32 + j] = d * scale * q - dmin * min;
      }
    }
  }
}

/**
 * Q6_K, 210 bytes for 256 elements: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, d.
 * In each half of 128: nibble byte j < 64 holds elements j and j + 64, pair byte j < 32 elements j, j+32, j+64, j+96.
 * x = d scale (q - 32), one scale for 16 elements
 */
const q6K: BlockDecoder = (bytes, blocks, out, half) => {
  const signed = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let b = 0, at = 0, to = 0; b < blocks; b++, at += 210, to += 256) {
    const d = half[bytes[at + 208] | (bytes[at + 209] << 8)];
    for (let i = 0; i < 256; i++) {
      const j = i & 127;
      const upper = i >> 7;
      const low = (bytes[at + upper * 64 + (j & 63)] >> ((j >> 6) * 4)) & 15;
      const high = (bytes[at + 128 + upper * 32 + (j & 31)] >> ((j >> 5) * 2)) & 3;
      out[to + i] = d * signed[at + 192 + (i >> 4)] * ((low | (high << 4)) - 32);
    }
  }
};

const DECODERS: Readonly<Record<string, BlockDecoder>> = {
  Q4_0: q4_0,
  Q4_1: q4_1,
  Q5_0: q5_0,
  Q5_1: q5_1,
  Q8_0: q8_0,
  Q4_K: (bytes, blocks, out, half) => decodeK(bytes, blocks, out, half, false),
  Q5_K: (bytes, blocks, out, half) => decodeK(bytes, blocks, out, half, true),
  Q6_K: q6K,
};

const FLOATS: Readonly<Record<string, (bytes: Uint8Array) => Float32Array>> = {
  F32: asFloat32,
  F16: (bytes) => float16ToFloat32(asUint16(bytes)),
  BF16: (bytes) => bfloat16ToFloat32(asUint16(bytes)),
};

/**
 * Values of whole blocks of a float or quantized ggml type, in order: f32[elements].
 * `name` is the tensor's, for the message. Throws `L-GGUF-TYPE` on a type it does not know.
 */
export function dequantize(type: string, bytes: Uint8Array, name: string): Float32Array {
  if (Object.hasOwn(FLOATS, type)) return FLOATS[type](bytes);
  if (!Object.hasOwn(DECODERS, type)) {
    const known = [...Object.keys(FLOATS), ...Object.keys(DECODERS)].join(", ");
    throw new SidenetError(
      "L-GGUF-TYPE",
      `"${name}" is ${type}; ${known} can be read. Use a file in one of these, such as a Q4_K_M or Q8_0.`,
    );
  }
  const { blockElements, blockBytes } = GGUF_TYPES.get(GGUF_TYPE_IDS.get(type)!)!;
  const blocks = Math.floor(bytes.byteLength / blockBytes);
  const out = new Float32Array(blocks * blockElements);
  DECODERS[type](bytes, blocks, out, float16Table());
  return out;
}
