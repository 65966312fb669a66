"""Random inputs of every operation in the table of golden/README.md."""

import math

import torch

from op_cases import write_op

SIZES = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 31, 32, 33, 40, 63, 64, 65, 66, 70, 96, 127, 128, 130)
HEADS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 33, 40, 48, 64, 80, 96, 127, 128, 129, 160, 192, 256)
LONG = (257, 1023, 1024, 1025, 4099)
LARGE = 1e4


def size(rng, largest=130, empty=False):
    if empty and rng.random() < 0.15:
        return 0
    return rng.choice([n for n in SIZES if n <= largest])


def leading(rng, max_axes=3, empty=True):
    """One to three small axes before the last; sometimes one of them is empty."""
    axes = [rng.choice((1, 2, 3, 5, 7)) for _ in range(rng.randint(1, max_axes))]
    if empty and rng.random() < 0.08:
        axes[rng.randrange(len(axes))] = 0
    return axes


def normal(*shape, scale=1.0):
    return torch.randn(shape) * scale


def visibility(rng, *shape):
    """A mask (u8), often with a row that is all zero."""
    mask = (torch.rand(*shape) < rng.choice((0.2, 0.6, 0.9))).to(torch.uint8)
    if mask.numel() and rng.random() < 0.7:
        mask.reshape(-1, shape[-1])[rng.randrange(mask.numel() // shape[-1])] = 0
    return mask


def matmul(rng):
    variant = rng.choice(("nn", "nt", "tn"))
    m, k, n = size(rng, 70, True), rng.choice((*SIZES, *LONG)), size(rng, 70)
    batch = rng.choice(([], [], [3], [2, 3], [1], [1, 2, 2]))
    large = LARGE if rng.random() < 0.15 else 1
    a = normal(*batch, *((k, m) if variant == "tn" else (m, k)), scale=large)
    b = normal(*batch, *((n, k) if variant == "nt" else (k, n)))
    params = {"variant": variant, "m": m, "k": k, "n": n, "batch": batch}
    return {"a": a, "b": b, "dy": normal(*batch, m, n)}, params, large == 1


def linear(rng):
    out, into, rows = size(rng, 130), size(rng, 130), leading(rng)
    large = LARGE if rng.random() < 0.15 else 1
    inputs = {"x": normal(*rows, into, scale=large), "w": normal(out, into), "dy": normal(*rows, out)}
    if rng.random() < 0.5:
        inputs["b"] = normal(out)
    return inputs, {"in": into, "out": out}, large == 1


def rms_norm(rng):
    width, rows = rng.choice((*SIZES, 576, *LONG)), leading(rng)
    special = rng.choice(("", "", "", "large", "zero", "tiny"))
    x = normal(*rows, width)
    flat = x.view(-1, width)
    if special and flat.shape[0]:
        flat[rng.randrange(flat.shape[0])] *= {"large": LARGE, "zero": 0, "tiny": 1e-6}[special]
    inputs = {"x": x, "dy": normal(*rows, width)}
    if rng.random() < 0.6:
        inputs["w"] = 1 + normal(width, scale=0.3)
    return inputs, {"eps": rng.choice((1e-5, 1e-6, 1e-8, 1e-3))}, not special


def softmax(rng):
    shape = [*leading(rng), rng.choice((*SIZES, 300, *LONG))]
    x = normal(*shape, scale=rng.choice((1, 3)))
    large = rng.random() < 0.2
    if large:
        x = torch.randint(-10, 11, shape).float() * 1000 + torch.randint(-8, 9, shape).float() / 4
    inputs = {"x": x, "dy": normal(*shape)}
    if rng.random() < 0.6:
        inputs["mask"] = visibility(rng, *shape)
    return inputs, {}, not large


def rope_scaling(rng, context):
    kind, key = rng.choice(("none", "default", "linear", "llama3")), rng.choice(("rope_type", "type"))
    if kind == "none":
        return None
    if kind == "linear":
        return {key: kind, "factor": rng.choice((1.5, 2.0, 4.0, 8))}
    if kind == "default":
        return {key: kind}
    low = rng.choice((1.0, 1.0, 2.0))
    ramp = {"factor": rng.choice((2.0, 8.0, 32.0)), "low_freq_factor": low, "high_freq_factor": low * rng.choice((2, 4))}
    return {key: kind} | ramp | {"original_max_position_embeddings": context}


def rope(rng):
    B, T, n, c = rng.choice((1, 2, 3)), rng.choice((1, 2, 5, 9, 17)), rng.choice((1, 2, 3, 5)), size(rng, 128) // 2 * 2 or 2
    params = {
        "rope_theta": rng.choice((10000.0, 500000.0, 1e6, 123.0)),
        "position_offset": rng.choice((0, 0, 1, 37, 4095, 32768, 131071)),
        "rope_scaling": rope_scaling(rng, rng.choice((16, 64, 8192))),
    }
    return {"x": normal(B, T, n, c), "dy": normal(B, T, n, c)}, params, True


def attention(rng):
    B, T, m, group = rng.choice((1, 2, 3)), rng.choice((1, 2, 5, 7, 16, 17, 24, 33, 65, 130)), rng.choice((1, 2, 3)), rng.choice((1, 2, 3, 4, 7, 16))
    S, c = rng.choice((T, T, T, size(rng, 40))), rng.choice(HEADS)
    offset = rng.choice((0, 0, S - T, rng.randint(-3, 3), rng.randint(-T, S)))
    n, large = m * group, rng.random() < 0.12
    scale = rng.choice((None, 1.0, 0.3)) or 1 / math.sqrt(c)
    if large:  # scores up to ten thousand that float32 holds exactly
        c, scale = rng.choice((4, 16, 64)), None
        q, k = torch.randint(-30, 31, (B, T, n, c)).float(), torch.randint(-30, 31, (B, S, m, c)).float()
    else:
        q, k = normal(B, T, n, c), normal(B, S, m, c)
    inputs = {"q": q, "k": k, "v": normal(B, S, m, c), "dy": normal(B, T, n, c)}
    if rng.random() < 0.5:
        inputs["key_mask"] = visibility(rng, B, S)
    return inputs, {"query_offset": offset, "scale": scale or 1 / math.sqrt(c)}, not large


def silu_mul(rng):
    shape = [*leading(rng), size(rng)]
    gate, extreme = normal(*shape, scale=rng.choice((1, 4))), rng.random() < 0.25
    if extreme:
        values = torch.tensor([LARGE, -LARGE, 88.0, -88.0, -104.0, 0.0, 30.0, -20.0])
        gate = values[torch.randint(0, 8, shape)]
    return {"gate": gate, "up": normal(*shape), "dy": normal(*shape)}, {}, not extreme


def embedding(rng):
    V, d, shape = rng.choice((1, 2, 9, 65, 300)), size(rng), leading(rng)
    ids = torch.randint(0, V, shape, dtype=torch.int32)
    return {"ids": ids, "table": normal(V, d), "dy": normal(*shape, d)}, {}, True


def targets_of(rng, N, V):
    targets = torch.randint(0, V, (N,), dtype=torch.int32)
    hidden = torch.rand(N) < rng.choice((0, 0.3, 0.9))
    hidden[rng.randrange(N)] = False
    targets[hidden] = -100
    return targets


def upstream(rng):
    return torch.tensor(rng.choice((1.0, 1.0, 0.125, -3.0, 1024.0)))


def cross_entropy(rng):
    N, V = rng.choice((1, 2, 7, 13, 33)), rng.choice((1, 2, 33, 65, 130, 300, *LONG, 50257))
    logits, large = normal(N, V, scale=rng.choice((1, 3))), rng.random() < 0.2
    if large:
        logits = torch.randint(-8, 9, (N, V)).float() * 1250 + torch.randint(-8, 9, (N, V)).float() / 4
    return {"logits": logits, "targets": targets_of(rng, N, V), "dloss": upstream(rng)}, {"ignore_index": -100}, not large


def lm_head_cross_entropy(rng):
    N, V, d = rng.choice((1, 2, 7, 13, 33)), rng.choice((1, 2, 33, 130, 300, 1000, *LONG, 50257)), rng.choice((1, 5, 16, 33, 64, 96))
    large = LARGE if rng.random() < 0.15 else 1
    h, w = normal(N, d, scale=large), normal(V, d, scale=rng.choice((1, 2)) / math.sqrt(d) / large)
    return {"h": h, "w": w, "targets": targets_of(rng, N, V), "dloss": upstream(rng)}, {"ignore_index": -100}, large == 1


def lora_linear(rng):
    out, into, rows, r = size(rng, 96), size(rng, 96), leading(rng), rng.choice((1, 2, 3, 4, 8, 9, 16, 33))
    alpha, root = rng.choice((1, 4, 8, 16, 7)), rng.random() < 0.3
    inputs = {"x": normal(*rows, into), "w": normal(out, into), "lora_a": normal(r, into), "lora_b": normal(out, r)}
    if rng.random() < 0.15:
        inputs["lora_b"] = torch.zeros(out, r)
    if rng.random() < 0.5:
        inputs["b"] = normal(out)
    params = {"r": r, "lora_alpha": alpha, "scale": alpha / (math.sqrt(r) if root else r)}
    return inputs | {"dy": normal(*rows, out)}, params, True


def adamw(rng):
    shape, steps = [rng.choice((1, 7, 33, 130)) for _ in range(rng.randint(1, 2))], 10
    g = normal(steps, *shape, scale=rng.choice((1, 1e-3, LARGE, 1e-6)))
    if rng.random() < 0.3:
        g.reshape(steps, -1)[:, ::3] = 0
    params = {
        "lr": rng.choice((1e-3, 3e-4, 1e-2)),
        "betas": list(rng.choice(((0.9, 0.999), (0.8, 0.95), (0.0, 0.99)))),
        "eps": rng.choice((1e-8, 1e-6)),
        "weight_decay": rng.choice((0.0, 0.01, 0.1, 1.5)),
    }
    return {"p": normal(*shape), "g": g}, params, False


def clip(rng):
    count, scale = rng.randint(1, 6), rng.choice((0, 1e-4, 1, 1, LARGE, 1e8))
    shapes = [[rng.choice((1, 5, 33, 257)) for _ in range(rng.randint(1, 2))] for _ in range(count)]
    inputs = {f"g{i}": normal(*shape, scale=scale) for i, shape in enumerate(shapes)}
    return inputs, {"count": count, "max_norm": rng.choice((1.0, 0.5, 0.01, 100.0))}, False


def gate_fusion(rng):
    shape, alpha = [*leading(rng), size(rng)], rng.choice((0.0, 0.13, -0.3, 5.0, -5.0, rng.gauss(0, 0.2)))
    inputs = {"s": normal(*shape), "r": normal(*shape), "alpha": torch.tensor([alpha]), "dy": normal(*shape)}
    return inputs, {"temperature": rng.choice((0.1, 0.1, 1.0, 0.03))}, abs(alpha) < 1


def reduce(rng):
    kind = rng.choice(("sum", "mean", "max"))
    shape = [rng.choice((1, 2, 5, 7, 33)) for _ in range(rng.randint(1, 4))]
    if len(shape) > 2:
        shape[0] = min(shape[0], 5)
    axis = rng.choice((None, *range(len(shape))))
    if rng.random() < 0.25:
        shape[rng.randrange(len(shape))] = rng.choice(LONG)
    inputs = {"x": normal(*shape)}
    if kind == "max" and rng.random() < 0.5:  # ties: the first of the largest
        inputs["x"] = torch.randint(0, 3, shape).float()
    if kind != "max":
        inputs["dy"] = normal(*([] if axis is None else [n for i, n in enumerate(shape) if i != axis]))
    return inputs, {"kind": kind, "axis": axis}, kind != "max"


def transpose(rng):
    shape = [rng.choice((1, 2, 3, 5, 18, 33) if i < 2 else (1, 2, 3, 5, 7)) for i in range(rng.randint(2, 4))]
    permutation = rng.sample(range(len(shape)), len(shape))
    return {"x": normal(*shape), "dy": normal(*[shape[i] for i in permutation])}, {"permutation": permutation}, True


def slice_(rng):
    shape = [rng.choice((1, 2, 6, 9, 17)) for _ in range(rng.randint(1, 4))]
    bounds = [sorted(rng.sample(range(n + 1), 2)) for n in shape]
    params = {"start": [a for a, _ in bounds], "stop": [b for _, b in bounds]}
    return {"x": normal(*shape), "dy": normal(*[b - a for a, b in bounds])}, params, True


def concat(rng):
    shape, count = [rng.choice((1, 2, 3, 5, 9)) for _ in range(rng.randint(1, 3))], rng.randint(1, 5)
    axis = rng.randrange(len(shape))
    parts = [[rng.choice((1, 2, 4, 6)) if i == axis else n for i, n in enumerate(shape)] for _ in range(count)]
    whole = [sum(part[i] for part in parts) if i == axis else n for i, n in enumerate(shape)]
    inputs = {f"x{i}": normal(*part) for i, part in enumerate(parts)}
    return inputs | {"dy": normal(*whole)}, {"count": count, "axis": axis}, True


DRAWS = {
    "adamw": adamw,
    "attention": attention,
    "clip": clip,
    "concat": concat,
    "cross_entropy": cross_entropy,
    "embedding": embedding,
    "gate_fusion": gate_fusion,
    "linear": linear,
    "lm_head_cross_entropy": lm_head_cross_entropy,
    "lora_linear": lora_linear,
    "matmul": matmul,
    "reduce": reduce,
    "rms_norm": rms_norm,
    "rope": rope,
    "silu_mul": silu_mul,
    "slice": slice_,
    "softmax": softmax,
    "transpose": transpose,
}


def write_random_op(folder, op, rng):
    inputs, params, half = DRAWS[op](rng)
    return write_op(folder, op, inputs, params, rng, half)
