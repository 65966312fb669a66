"""Random adapters on random models, and their golden cases."""

import torch

from adapters import Lora, SideNetwork, evaluate
from arithmetic import EXACT, HALF, SINGLE
from decoder import ATTENTION, MLP, Model
from files import float32, relative, write_json, write_tensors
from model_draws import batch_json, compared, draw_batch, draw_greedy, tolerances

TRAINING = {"steps": 5, "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "max_grad_norm": 1.0}


def draw_training(rng):
    """Training settings; mostly those of golden/README.md."""
    if rng.random() < 0.6:
        return TRAINING
    return TRAINING | {
        "steps": rng.choice((1, 3, 5, 7)),
        "lr": rng.choice((1e-3, 3e-4, 3e-3)),
        "weight_decay": rng.choice((0.0, 0.01, 0.1)),
        "max_grad_norm": rng.choice((0.1, 1.0, 100.0)),
    }


def draw_side(rng, base):
    """The configuration of a Ladder or an xLadder."""
    L, extended = base["num_hidden_layers"], rng.random() < 0.4
    if extended:
        delta = rng.randint(1, min(3, L))
        rungs, layers = list(range(L - delta, L)), rng.choice((2 * delta, 2 * delta, delta, delta + 1))
    else:
        layers = rng.randint(1, 4)
        rungs = sorted(rng.randint(0 if rng.random() < 0.3 else 1, L) for _ in range(rng.randint(1, layers)))
    m = rng.choice((1, 1, 2))
    n, c = m * rng.choice((1, 2, 3)), rng.choice((2, 4, 6, 8, 10, 12, 16))
    fusion = rng.choice(("add", "add", "gate"))
    return {
        "method": "xladder" if extended else "ladder",
        "num_hidden_layers": layers,
        "hidden_size": rng.choice((n * c, n * c, 7, 14, 16, 20, 33)),
        "intermediate_size": rng.choice((8, 13, 24, 32, 40)),
        "num_attention_heads": n,
        "num_key_value_heads": m,
        "head_dim": c,
        "rungs": rungs,
        "initial_rung": not extended and rng.random() < 0.35,
        "fusion": fusion,
        "gate_temperature": rng.choice((0.1, 0.1, 0.5, 1.0)),
        "rung_norm": rng.random() < 0.7,
        "init": "random",
        "seed": 0,
    }


def draw_patterns(rng, L, values):
    """Keys that PEFT matches as regular expressions; the first match counts."""
    i = rng.randrange(L)
    keys = [
        "q_proj",
        "down_proj",
        f"layers.{i}.self_attn.q_proj",
        f"model.layers.{i}.mlp.up_proj",
        f"layers\\.{i}\\..*",
        "self_attn.(k|v)_proj",
        "mlp\\..*_proj",
        ".*o_proj",
        "roj",
    ]
    return {key: rng.choice(values) for key in rng.sample(keys, rng.randint(1, 4))} if rng.random() < 0.6 else {}


def draw_lora(rng, base):
    L, every = base["num_hidden_layers"], [*ATTENTION, *MLP]
    layers = sorted(rng.sample(range(L), rng.randint(1, L))) if rng.random() < 0.4 else None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "revision": None,
        "inference_mode": True,
        "r": rng.choice((1, 2, 3, 4, 8)),
        "lora_alpha": rng.choice((1, 2, 4, 7, 8, 16)),
        "lora_dropout": 0.0,
        "target_modules": rng.choice((every, every, rng.sample(every, rng.randint(1, 6)))),
        "fan_in_fan_out": False,
        "bias": "none",
        "use_rslora": rng.random() < 0.35,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "layers_to_transform": layers,
        "layers_pattern": None,
        "rank_pattern": draw_patterns(rng, L, (1, 2, 5, 6)),
        "alpha_pattern": draw_patterns(rng, L, (1, 3, 8, 16)),
        "exclude_modules": None,
        "lora_bias": False,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "layer_replication": None,
    }


def draw_start(rng, shapes, zero):
    """Initial values; with `zero`, U or lora_B is zero, which blocks the other gradients."""
    start = {}
    for name, shape in shapes.items():
        blocking = name == "ladder.up.weight" or name.endswith("lora_B.weight")
        if blocking and zero:
            start[name] = torch.zeros(shape)
        elif name.endswith("norm.weight"):
            start[name] = 1 + 0.2 * torch.randn(shape)
        elif name.endswith(".gate"):
            start[name] = rng.choice((0.0, 0.1, 0.3)) * torch.randn(shape)
        elif name.endswith(".bias"):
            start[name] = 0.3 * torch.randn(shape)
        else:
            start[name] = (0.3 if "lora_B" in name else 1) * torch.randn(shape) / shape[1] ** 0.5
    return start


def blocked(start):
    """Parameters whose gradient is exactly 0 if U or lora_B is zero."""
    if any(name.startswith("ladder.") for name in start):
        return sorted(name for name in start if name != "ladder.up.weight")
    return sorted(name for name in start if name.endswith("lora_A.weight"))


def gradient_errors(out, ref, names):
    stack = {k: torch.cat([v[f"grad.{n}"].double().flatten() for n in names]) for k, v in (("out", out), ("ref", ref))}
    floor = 1e-3 * torch.linalg.vector_norm(stack["ref"]).item()

    def single(name):
        a, b = out[f"grad.{name}"].double(), ref[f"grad.{name}"].double()
        return (torch.linalg.vector_norm(a - b) / max(torch.linalg.vector_norm(b).item(), floor)).item()

    gates = [n for n in names if n.endswith(".gate")]
    result = {"grad": max(single(n) for n in names if n not in gates), "grad_all": relative(stack["out"], stack["ref"])}
    if gates:
        both = [torch.cat([t[f"grad.{n}"] for n in gates]) for t in (out, ref)]
        result["grad_gate"] = relative(*both)
    return result


def errors(out, ref, names, batch):
    where = compared(batch)
    states = [k for k in ref if k.startswith("side_states.") or k in ("logits", "y")]
    steps = {k: max(relative(a, b) for a, b in zip(out[k], ref[k], strict=True)) for k in ("losses", "grad_norms")}
    return (
        {"logits": max(relative(out[k][where], ref[k][where]) for k in states)}
        | steps
        | gradient_errors(out, ref, names)
        | {"after": max(relative(out[f"after.{n}"], ref[f"after.{n}"]) for n in names)}
    )


def measure(adapter, base, start, batch, training, expected):
    """
    The largest errors of the two other arithmetics for the initial values and for two sets of values near them. One run alone
    could be accurate by chance: AdamW divides a gradient by its size, and a gate has a single one.
    """
    config, values, exact = base["config"], base["values"], base["exact"]

    def results(ar, values, start):
        return evaluate(adapter, Model(ar, config, values, exact), start, batch, training)

    def neighbours(tensors, by):
        return {k: v.float() * (1 + by * torch.randn(v.shape)) for k, v in tensors.items()}

    measured = {}
    for precision, ar, by in (("float32", SINGLE, 6e-8), ("float16", HALF, 2e-4)):
        runs = [errors(results(ar, values, start), expected, list(start), batch)]
        for _ in range(2):
            near = neighbours(start, by)
            runs.append(errors(results(ar, values, near), results(EXACT, values, near), list(start), batch))
        measured[precision] = {k: max(run[k] for run in runs) for k in runs[0]}
    return measured


def write_random_adapter(folder, rng, base):
    config, values, exact = base["config"], base["values"], base["exact"]
    lora = rng.random() < 0.4
    fields = draw_lora(rng, config) if lora else draw_side(rng, config)
    adapter = Lora(fields, config) if lora else SideNetwork(fields, config)
    zero = rng.random() < 0.15
    start = draw_start(rng, adapter.shapes(config["hidden_size"]), zero)
    stored = torch.float32 if zero or rng.random() < 0.85 else rng.choice((torch.float16, torch.bfloat16))
    start = {k: v.to(stored) for k, v in start.items()}
    batch, training = draw_batch(rng, config["vocab_size"]), draw_training(rng)
    model = Model(EXACT, config, values, exact)
    wide = {k: v.double() for k, v in start.items()}
    found = draw_greedy(rng, lambda ids, mask: adapter.run(model, wide, ids, mask)[0], model)
    expected = evaluate(adapter, model, start, batch, training)
    measured = measure(adapter, base, start, batch, training, expected)
    if zero and measured["float16"]["after"] < 0.1:
        measured["float16"]["after"] = 0.1  # values that start at zero depend only on the signs of small gradients
    about = {
        "model": f"../../models/{base['name']}",
        "training": training,
        "trainable_parameters": sum(v.numel() for v in start.values()),
        "measured": measured,
        "tolerance": tolerances(measured),
    }
    folder.mkdir(parents=True)
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": about["model"]} | fields)
    write_tensors(folder / "adapter_model.safetensors", start, rng, True)
    write_json(folder / "batch.json", batch_json(batch, found))
    expected |= {"greedy": found["greedy"], "greedy_margin": found["margin"]}
    write_tensors(folder / "expected.safetensors", float32(expected), rng)
    write_json(folder / "case.json", about | ({"exactly_zero_gradients": blocked(start)} if zero else {}))
