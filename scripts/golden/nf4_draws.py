"""Random cases of quantized operations, and random NF4 states for the checkpoints of models."""

import numpy as np
import torch

import nf4
from op_cases import write_case, write_op

BLOCKS = (64, 64, 64, 32, 128, 256, 512)
NESTED = (256, 256, 256, 64, 16, 512)


def weights(rng, out, into, block, scale=None):
    """A weight in float32 [out, in], sometimes with zero blocks or outliers; no value is near a threshold."""
    values = torch.randn(out * into).numpy() * np.float32(scale or rng.choice((1, 0.05, 1e-4)))
    kind = rng.choice(("", "", "", "zero blocks", "outlier", "large")) if scale is None else ""
    if kind == "zero blocks":
        for start in range(0, values.size, block):
            if rng.random() < 0.4:
                values[start : start + block] = 0
    if kind == "outlier":
        values[rng.randrange(values.size)] = 1e4
    if kind == "large":
        values *= np.float32(1e4)
    return nf4.settle(values, block).reshape(out, into)


def random_state(rng, out, into, double, block, nested_block, scale=None):
    """A random weight and its state, drawn again until no code of the scales depends on rounding."""
    while True:
        drawn = weights(rng, out, into, block, scale)
        state = nf4.make_state(drawn, double, block, nested_block)
        if state is not None:
            return drawn, state


def scramble(rng, state):
    """Replaces codes and scales by random ones, which no quantizer may write."""
    size = int(np.prod(state["shape"]))
    state["weight"] = nf4.pack(torch.randint(0, 16, (size,)).numpy().astype(np.uint8))
    count = state["absmax"].size
    if "nested_absmax" not in state:
        state["absmax"] = torch.rand(count).numpy()
        return
    state["absmax"] = torch.randint(0, 256, (count,)).numpy().astype(np.uint8)
    state["nested_absmax"] = torch.rand(state["nested_absmax"].size).numpy()
    state["nested_offset"] = np.float32(rng.uniform(0.1, 3))
    nudged = state["nested_quant_map"].copy()
    some = torch.randint(0, 256, (20,)).numpy()
    nudged[some] = np.nextafter(nudged[some], np.float32(2))
    state["nested_quant_map"] = nudged


def state_tensors(state):
    names = ["weight", "absmax", "quant_map", "nested_absmax", "nested_quant_map", "nested_offset"]
    return {k: torch.from_numpy(np.array(state[k])) for k in names if k in state}


def draw_state(rng):
    out, into = (rng.choice((1, 2, 3, 7, 9, 20, 33, 48, 65, 96)) for _ in range(2))
    if rng.random() < 0.12:
        out, into = 136, 128
    double, block, nested_block = rng.random() < 0.6, rng.choice(BLOCKS), rng.choice(NESTED)
    weight, state = random_state(rng, out, into, double, block, nested_block)
    params = {"shape": [out, into], "double_quant": double, "blocksize": block, "nested_blocksize": nested_block}
    return weight, state, params


def nf4_quantize(folder, rng):
    weight, state, params = draw_state(rng)
    expected = state_tensors(state) | {"dequantized": torch.from_numpy(nf4.dequantize(state))}
    expected |= {k: torch.from_numpy(state[k]) for k in ("codes", "absmax_f32")}
    write_case(folder, "nf4_quantize", {"w": torch.from_numpy(weight)}, expected, params | {"exact": True}, rng)
    return True


def nf4_dequantize(folder, rng):
    _, state, params = draw_state(rng)
    if rng.random() < 0.5:
        scramble(rng, state)
    expected = {"w": torch.from_numpy(nf4.dequantize(state))}
    write_case(folder, "nf4_dequantize", state_tensors(state), expected, params | {"exact": True}, rng)
    return True


def nf4_linear(folder, rng):
    _, state, params = draw_state(rng)
    out, into = params["shape"]
    rows = rng.choice(([1], [3], [2, 5], [1, 1, 7], [33], [0]))
    operands = {"x": torch.randn(*rows, into), "dy": torch.randn(*rows, out)}
    if rng.random() < 0.5:
        operands["b"] = torch.randn(out)
    weight = torch.from_numpy(nf4.dequantize(state))
    half = weight.abs().max().item() < 100
    files = operands | state_tensors(state)
    return write_op(folder, "nf4_linear", operands | {"w": weight}, params, rng, half, files)


DRAWS = {"nf4_quantize": nf4_quantize, "nf4_dequantize": nf4_dequantize, "nf4_linear": nf4_linear}
