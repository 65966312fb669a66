"""NF4 as bitsandbytes stores it, with every step in float32 (numpy rounds after each operation and fuses none)."""

import json

import numpy as np
import torch

F = np.float32
LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=F,
)  # fmt: skip


def dynamic_map():
    """The signed 8-bit map, 256 entries from -0.99296874 to 1."""
    entries = [F(0), F(1)]
    tenth, one = F(0.1), F(1)
    for i in range(7):
        n = 2**i
        step = F((float(one) - float(tenth)) / n)

        def edge(j, step=step, n=n):
            if j < (n + 1) // 2:
                return F(float(tenth) + float(step) * j)
            return F(1.0 - float(step) * (n - j))

        for j in range(n):
            middle = F(F(edge(j) + edge(j + 1)) / F(2))
            value = F(10.0 ** (i - 6)) * middle
            entries += [value, -value]
    return np.sort(np.array(entries, dtype=F))


MAP = dynamic_map()
ZERO = int(np.where(MAP == 0)[0][0])


def thresholds(levels):
    """Midpoints of neighbouring levels."""
    return (levels[1:] + levels[:-1]) / F(2)


def blocks_of(values, size):
    """[blocks, size], with zeros after the last value."""
    count = -(-values.size // size)
    padded = np.zeros(count * size, dtype=F)
    padded[: values.size] = values
    return padded.reshape(count, size)


def quantize(values, size, levels, zero):
    """Codes and absmax of flat float32 values."""
    blocks = blocks_of(values, size)
    absmax = np.abs(blocks).max(axis=1)
    safe = np.where(absmax == 0, F(1), absmax)
    scaled = blocks * (F(1) / safe)[:, None]
    codes = np.searchsorted(thresholds(levels), scaled, side="left")
    codes[absmax == 0] = zero
    return codes.reshape(-1)[: values.size].astype(np.uint8), absmax


def pack(codes):
    """Two codes per byte, the earlier in the high nibble; an odd count is padded with code 7."""
    even = np.append(codes, 7) if codes.size % 2 else codes
    return (even[0::2] << 4 | even[1::2]).astype(np.uint8).reshape(-1, 1)


def near_threshold(values, size, levels):
    """Whether each value is so near a threshold that rounding could change its code."""
    blocks = blocks_of(values, size).astype(np.float64)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = (blocks / np.where(absmax == 0, 1, absmax)).reshape(-1)[: values.size]
    limits = thresholds(levels)
    at = np.clip(np.searchsorted(limits, scaled), 1, limits.size - 1)
    close = [np.abs(scaled - limits[i]) <= 8e-6 * np.abs(limits[i]) for i in (at - 1, at)]
    return close[0] | close[1]


def settle(values, size):
    """The values, with those near a threshold moved away."""
    values = values.astype(F).copy()
    for _ in range(100):
        near = near_threshold(values, size, LEVELS)
        if not near.any():
            return values
        values[near] *= F(0.999)
    raise ValueError("values on thresholds")


def double_quantize(absmax, nested_block):
    """Codes, nested absmax, offset; None if the order of the sum in the mean could change a code."""
    offset = F(torch.from_numpy(absmax).mean().item())
    codes, nested = quantize(absmax - offset, nested_block, MAP, ZERO)
    if np.all(absmax == offset):
        return codes, nested, offset
    for shift in (-1e-6, 1e-6):
        moved = F(offset * F(1 + shift))
        if moved != offset and not np.array_equal(quantize(absmax - moved, nested_block, MAP, ZERO)[0], codes):
            return None
    if near_threshold(absmax - offset, nested_block, MAP).any():
        return None
    return codes, nested, offset


def dequantize(state):
    """The weight of a state in float32, [out, in]."""
    codes = state["weight"].reshape(-1)
    flat = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)[: int(np.prod(state["shape"]))]
    absmax = state["absmax"]
    if "nested_absmax" in state:
        nested = np.repeat(state["nested_absmax"], state["nested_blocksize"])[: absmax.size]
        absmax = (state["nested_quant_map"][absmax] * nested).astype(F) + state["nested_offset"]
    scale = np.repeat(absmax.astype(F), state["blocksize"])[: flat.size]
    return (state["quant_map"][flat] * scale).astype(F).reshape(state["shape"])


def make_state(weight, double, block=64, nested_block=256):
    """The state of a weight [out, in] (float32 numpy); None if rounding could change its scales."""
    codes, absmax = quantize(weight.reshape(-1), block, LEVELS, 7)
    state = {"shape": list(weight.shape), "blocksize": block, "nested_blocksize": nested_block}
    state |= {"codes": codes, "absmax_f32": absmax, "weight": pack(codes), "quant_map": LEVELS, "absmax": absmax}
    if not double:
        return state
    scales = double_quantize(absmax, nested_block)
    if scales is None:
        return None
    state["absmax"], state["nested_absmax"], state["nested_offset"] = scales
    return state | {"nested_quant_map": MAP}


def checkpoint_tensors(name, state, dtype):
    """The tensors of a state by their names in a checkpoint; `dtype` is the weight's in quant_state."""
    about = {"quant_type": "nf4", "blocksize": state["blocksize"], "dtype": dtype, "shape": state["shape"]}
    parts = ["absmax", "quant_map"]
    if "nested_absmax" in state:
        about |= {"nested_blocksize": state["nested_blocksize"], "nested_dtype": "float32"}
        about["nested_offset"] = float(state["nested_offset"])
        parts += ["nested_absmax", "nested_quant_map"]
    tensors = {name: torch.from_numpy(state["weight"])}
    tensors |= {f"{name}.{part}": torch.from_numpy(np.array(state[part])) for part in parts}
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8).copy()
    return tensors | {f"{name}.quant_state.bitsandbytes__nf4": torch.from_numpy(text)}
