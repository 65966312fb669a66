"""The files of golden cases, and tolerances computed from measured errors."""

import json
import math
from pathlib import Path

import torch

DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint8: "U8",
}


def write_tensors(path, tensors, rng, metadata=False):
    """Writes safetensors in random order; blanks after the header make the data start at any offset."""
    names = list(tensors)
    rng.shuffle(names)
    header, data, start = {"__metadata__": {"format": "pt"}} if metadata else {}, [], 0
    for name in names:
        tensor = tensors[name].detach().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        shape = list(tensor.shape)
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [start, start + len(raw)]}
        data.append(raw)
        start += len(raw)
    text = json.dumps(header).encode() + b" " * rng.randrange(8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=1))


def relative(out, ref):
    """The relative error of a tensor, as golden/README.md defines it."""
    out, ref = out.double(), ref.double()
    size = torch.linalg.vector_norm(ref).item()
    distance = torch.linalg.vector_norm(out - ref).item()
    return distance if size < 1e-30 else distance / size


def round_up(value):
    """Rounds up to 1, 2 or 5 times a power of ten."""
    if value == 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    step = next(step for step in (1, 2, 5, 10) if value <= step * power * (1 + 1e-12))
    return float(f"{step * power:.0e}")


# Factor on a measured error, and the smallest tolerance.
LIMITS = {"float32": (10, 1e-5), "float16": (3, 2e-3)}


def tolerance(error, precision):
    factor, smallest = LIMITS[precision]
    return max(smallest, round_up(factor * error))


def float32(tensors):
    """Expected values as they are stored: floats in float32."""
    return {k: v.detach().float() if v.is_floating_point() else v for k, v in tensors.items()}
