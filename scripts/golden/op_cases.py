"""Golden cases of single operations: how each is computed, and how the files of a case are written."""

import torch

from arithmetic import EXACT, HALF, SINGLE
from attention import attention, cross_entropy, rms_norm, rope_tables, rotate, softmax
from files import float32, relative, tolerance, write_json, write_tensors

MAX_ERROR = 0.05  # with a larger error, a case has no float16 tolerances, or in float32 is not written


def matmul(ar, i, p):
    a, b = i["a"], i["b"]
    if p["variant"] == "nt":
        b = b.transpose(-1, -2)
    if p["variant"] == "tn":
        a = a.transpose(-1, -2)
    return {"y": a @ b}


def linear_of(x, w, b):
    y = x @ w.T
    return y if b is None else y + b


def rope(ar, i, p):
    x = i["x"]
    cos, sin = rope_tables(x.shape[-1], p["rope_theta"], p["rope_scaling"], p["position_offset"], x.shape[1])
    return {"y": rotate(x, cos, sin), "cos": cos.to(ar.dtype), "sin": sin.to(ar.dtype)}


def lora_linear(ar, i, p):
    base = ar.store(linear_of(i["x"], i["w"], i.get("b")))
    low = ar.store(i["x"] @ i["lora_a"].T)
    return {"y": base + p["scale"] * ar.store(low @ i["lora_b"].T)}


def gate_fusion(ar, i, p):
    mu = torch.sigmoid(i["alpha"] / p["temperature"])
    return {"y": ar.store(mu * i["s"]) + ar.store((1 - mu) * i["r"])}


def reduce(ar, i, p):
    x, axis = i["x"], p["axis"]
    flat, over = (x.reshape(-1), 0) if axis is None else (x, axis)
    if p["kind"] == "max":
        y, at = flat.max(over)
        return {"y": y, "argmax": at.int()}
    return {"y": flat.sum(over) if p["kind"] == "sum" else flat.mean(over)}


def slices(x, p):
    return x[tuple(slice(a, b) for a, b in zip(p["start"], p["stop"], strict=True))]


def adamw(ar, i, p):
    """PyTorch's AdamW."""
    parameter = torch.nn.Parameter(i["p"].clone())
    settings = {"lr": p["lr"], "betas": tuple(p["betas"]), "eps": p["eps"], "weight_decay": p["weight_decay"]}
    optimizer = torch.optim.AdamW([parameter], **settings)
    trail = []
    for gradient in i["g"]:
        parameter.grad = gradient.clone()
        optimizer.step()
        trail.append(parameter.detach().clone())
    state = optimizer.state[parameter]
    return {"p": torch.stack(trail), "m": state["exp_avg"], "v": state["exp_avg_sq"]}


def clip(ar, i, p):
    norm = torch.stack([i[f"g{n}"].square().sum() for n in range(p["count"])]).sum().sqrt()
    factor = torch.clamp(p["max_norm"] / (norm + 1e-6), max=1)
    return {"norm": norm} | {f"clipped{n}": i[f"g{n}"] * factor for n in range(p["count"])}


def embedding(ar, i, p):
    return {"y": i["table"][i["ids"].long()]}


OPS = {
    "matmul": matmul,
    "linear": lambda ar, i, p: {"y": linear_of(i["x"], i["w"], i.get("b"))},
    "rms_norm": lambda ar, i, p: {"y": rms_norm(i["x"], i.get("w"), p["eps"])},
    "softmax": lambda ar, i, p: {"y": softmax(i["x"], i["mask"] != 0 if "mask" in i else None)},
    "rope": rope,
    "attention": lambda ar, i, p: {
        "y": attention(i["q"], i["k"], i["v"], i.get("key_mask"), p["query_offset"], p["scale"])
    },
    "silu_mul": lambda ar, i, p: {"y": torch.nn.functional.silu(i["gate"]) * i["up"]},
    "embedding": embedding,
    "cross_entropy": lambda ar, i, p: {"loss": cross_entropy(i["logits"], i["targets"])},
    "lm_head_cross_entropy": lambda ar, i, p: {"loss": cross_entropy(i["h"] @ i["w"].T, i["targets"])},
    "nf4_linear": lambda ar, i, p: {"y": linear_of(i["x"], i["w"], i.get("b"))},
    "lora_linear": lora_linear,
    "adamw": adamw,
    "clip": clip,
    "gate_fusion": gate_fusion,
    "reduce": reduce,
    "transpose": lambda ar, i, p: {"y": i["x"].permute(p["permutation"])},
    "slice": lambda ar, i, p: {"y": slices(i["x"], p)},
    "concat": lambda ar, i, p: {"y": torch.cat([i[f"x{n}"] for n in range(p["count"])], p["axis"])},
}

FROZEN = {"lora_linear": {"w", "b"}, "nf4_linear": {"w"}}
NEVER_ROUNDED = {("gate_fusion", "alpha"), ("nf4_linear", "w")}


def run(ar, op, inputs, params):
    """Outputs and gradients in one arithmetic."""
    upstream = "dloss" if "dloss" in inputs else "dy"
    operands = {}
    for name, tensor in inputs.items():
        if name == upstream:
            continue
        value = tensor.to(ar.dtype) if (op, name) in NEVER_ROUNDED else ar.load(tensor)
        differentiable = tensor.is_floating_point() and name not in FROZEN.get(op, ()) and upstream in inputs
        operands[name] = value.clone().requires_grad_(differentiable)
    outputs = OPS[op](ar, operands, params)
    if upstream not in inputs:
        return {k: ar.load(v.detach()) for k, v in outputs.items()}
    y = outputs["loss" if upstream == "dloss" else "y"]
    dy = inputs[upstream].to(ar.dtype) if upstream == "dloss" else ar.load(inputs[upstream])
    leaves = {k: v for k, v in operands.items() if v.requires_grad}
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.reshape(y.shape))
    outputs = {k: v if k in ("loss", "cos", "sin", "argmax") else ar.load(v) for k, v in outputs.items()}
    kept = {k: v.detach() for k, v in outputs.items()}
    for name, gradient in zip(leaves, gradients, strict=True):
        kept[f"d{name}"] = gradient if (op, name) in NEVER_ROUNDED else ar.load(gradient)
    return kept


def finite(tensors):
    return all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point())


def write_op(folder, op, inputs, params, rng, half=True, files=None):
    """
    Writes a case with tolerances from the errors of the two other arithmetics. `files` are the tensors of inputs.safetensors if
    they are not the operands. Writes nothing and returns False if float32 cannot represent the results well enough.
    """
    exact = run(EXACT, op, inputs, params)
    if not finite(float32(exact)):
        return False
    floats = [k for k, v in exact.items() if v.is_floating_point()]
    measured, tolerances = {}, {}
    for precision, ar in [("float32", SINGLE)] + ([("float16", HALF)] if half else []):
        other = run(ar, op, inputs, params)
        errors = {k: relative(other[k], exact[k]) for k in floats}
        if precision == "float32" and max(errors.values()) > MAX_ERROR:
            return False
        if precision == "float16" and not all(error < MAX_ERROR for error in errors.values()):
            continue
        measured[precision] = errors
        tolerances[precision] = {k: tolerance(v, precision) for k, v in errors.items()}
    write_case(folder, op, files or inputs, exact, params | {"measured": measured, "tolerance": tolerances}, rng)
    return True


def write_case(folder, op, inputs, expected, params, rng):
    folder.mkdir(parents=True)
    write_tensors(folder / "inputs.safetensors", inputs, rng)
    write_tensors(folder / "expected.safetensors", float32(expected), rng)
    write_json(folder / "params.json", {"op": op} | params)
