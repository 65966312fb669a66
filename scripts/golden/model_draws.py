"""Random configurations, weights and batches of models, and their golden cases."""

import numpy as np
import torch

import nf4
from arithmetic import EXACT, HALF, SINGLE
from decoder import ATTENTION, MLP, Form, Model, greedy
from files import float32, relative, tolerance, write_json, write_tensors
from nf4_draws import random_state
from op_draws import rope_scaling

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_ERROR = 0.2  # with a larger error in float16, a case has no float16 tolerances


def draw_heads(rng):
    m = rng.choice((1, 1, 2, 3))
    return m * rng.choice((1, 1, 2, 3, 4)), m


def draw_rope(rng, config):
    theta = rng.choice((10000.0, 500000.0, 1e6, 777.0))
    scaling = rope_scaling(rng, rng.choice((16, 32, 64)))
    if rng.random() < 0.35:
        kind = {"rope_type": "default"} if scaling is None else dict(scaling)
        if "type" in kind:
            kind["rope_type"] = kind.pop("type")
        config["rope_parameters"] = {"rope_theta": theta} | kind
    else:
        config |= {"rope_theta": theta, "rope_scaling": scaling}
    return config


def draw_config(rng, dtype):
    family = rng.choice(("llama", "llama", "mistral", "qwen2", "qwen3", "qwen3"))
    n, m = draw_heads(rng)
    c = rng.choice((2, 4, 6, 8, 10, 12, 16, 20, 24))
    while n * c > 96:
        c = max(2, c // 4 * 2)
    own_width = family != "qwen2" and rng.random() < 0.5
    config = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": rng.choice((64, 65, 96, 128, 131, 200, 257, 300)),
        "hidden_size": rng.choice((24, 31, 33, 40, 56, 64, 72, 96)) if own_width else n * c,
        "intermediate_size": rng.choice((8, 24, 33, 57, 64, 96, 136)),
        "num_hidden_layers": rng.randint(1, 5),
        "num_attention_heads": n,
        "num_key_value_heads": m,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": rng.choice((1e-5, 1e-6)),
        "tie_word_embeddings": rng.random() < 0.4,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if own_width or family == "qwen3":
        config["head_dim"] = c
    if family == "llama":
        config |= {"attention_bias": rng.random() < 0.4, "mlp_bias": rng.random() < 0.4}
    if family == "qwen3":
        config["attention_bias"] = rng.random() < 0.4
    if family == "mistral":
        config["sliding_window"] = rng.choice((None, 32, 4096))
    if family in ("qwen2", "qwen3"):
        config |= {"use_sliding_window": False, "sliding_window": rng.choice((None, 4096)), "max_window_layers": 28}
    config[rng.choice(("dtype", "torch_dtype"))] = dtype
    return draw_rope(rng, config)


def draw_parameter(rng, name, shape):
    if name.endswith("norm.weight"):
        return 1 + 0.2 * torch.randn(shape)
    if name.endswith(".bias"):
        return 0.3 * torch.randn(shape)
    if name == "model.embed_tokens.weight":
        return torch.randn(shape)
    if name == "lm_head.weight":
        return 2 * torch.randn(shape) / shape[1] ** 0.5
    return rng.uniform(0.5, 1.3) * torch.randn(shape) / shape[1] ** 0.5


def model_shapes(config):
    V, d = config["vocab_size"], config["hidden_size"]
    shapes = {"model.embed_tokens.weight": (V, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, d)
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in Form(config).shapes().items()}
    return shapes


def is_linear(name):
    return name.endswith(".weight") and name.split(".")[-2] in (*ATTENTION, *MLP)


def quantization_config(double):
    return {
        "quant_method": "bitsandbytes",
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }


def draw_weights(rng, config, stored_as, quantized):
    """The tensors of the files, the weights that are computed with, and the names of dequantized ones."""
    files, values, exact = {}, {}, set()
    block, nested_block = rng.choice((64, 64, 64, 32, 128)), rng.choice((256, 256, 64))
    for name, shape in model_shapes(config).items():
        drawn = draw_parameter(rng, name, shape)
        if quantized and is_linear(name):
            scale = drawn.std().item() or 0.1
            _, state = random_state(rng, *shape, quantized == "double", block, nested_block, scale)
            if rng.random() < 0.1:
                zero_block(state)
            files |= nf4.checkpoint_tensors(name, state, stored_as)
            values[name] = torch.from_numpy(nf4.dequantize(state))
            exact.add(name)
            continue
        wide = name.endswith("norm.weight") and rng.random() < 0.1
        files[name] = drawn if wide else drawn.to(STORED[stored_as])
        values[name] = files[name].float()
    if config["tie_word_embeddings"] and rng.random() < 0.2:
        files["lm_head.weight"] = files["model.embed_tokens.weight"].clone()
    return files, values, exact


def zero_block(state):
    """Makes the first block zero as bitsandbytes does on a GPU: with code 0, where it writes 7 on a CPU."""
    if "nested_absmax" in state or state["absmax"].size == 1 or state["blocksize"] % 2:
        return
    state["absmax"] = state["absmax"].copy()
    state["absmax"][0] = np.float32(0)
    state["weight"][: state["blocksize"] // 2] = 0


def write_checkpoint(folder, files, rng):
    shards = rng.choice((1, 1, 1, 2, 3, 5))
    if shards == 1:
        write_tensors(folder / "model.safetensors", files, rng, rng.random() < 0.7)
        return
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    place = {name: rng.choice(names) for name in files}
    names = [name for name in names if name in place.values()]
    for shard in names:
        own = {name: tensor for name, tensor in files.items() if place[name] == shard}
        write_tensors(folder / shard, own, rng, rng.random() < 0.7)
    total = sum(tensor.numel() * tensor.element_size() for tensor in files.values())
    index = {"metadata": {"total_size": total}, "weight_map": place}
    write_json(folder / "model.safetensors.index.json", index)


def draw_mask(rng, B, T):
    mask = torch.ones(B, T, dtype=torch.int64)
    kind = rng.choice(("none", "none", "left", "right", "both", "hole"))
    for row in mask:
        if T < 3 or rng.random() < 0.3:
            continue
        left, right = (rng.randint(0, (T - 2) // 2) if kind in (side, "both") else 0 for side in ("left", "right"))
        row[:left] = 0
        row[T - right :] = 0
        if kind == "hole":
            row[rng.randrange(1, T)] = 0
    return mask


def draw_batch(rng, V):
    """ids, mask, labels [B, T] where at least one label is scored at a position with two visible keys."""
    B, T = rng.choice((1, 2, 2, 3)), rng.choice((3, 4, 5, 8, 11, 12, 16, 17, 24))
    ids, mask = torch.randint(0, V, (B, T)), draw_mask(rng, B, T)
    labels = ids.clone() if rng.random() < 0.7 else torch.randint(0, V, (B, T))
    seen_before = torch.cat([torch.zeros(B, 1, dtype=torch.int64), mask.cumsum(1)[:, :-1]], 1) > 0
    first = (mask.cumsum(1) == 1) & (mask == 1)
    hidden = (mask == 0) | (~seen_before & first & (torch.arange(T) > 0)) | ~(seen_before | first)
    hidden |= torch.rand(B, T) < rng.choice((0, 0.2, 0.7))
    labels[hidden] = -100
    # A query with one visible key gives q and k no gradient. If there were no other, AdamW's steps would follow rounding errors.
    if not ((labels[:, 1:] != -100) & (mask.cumsum(1)[:, :-1] > 1)).any():
        return draw_batch(rng, V)
    return {"ids": ids, "mask": mask, "labels": labels}


def draw_greedy(rng, final_state, model):
    """A prompt whose greedy continuation does not depend on rounding."""
    V = model.config["vocab_size"]
    for count in (8, 8, 4, 2, 1):
        prompts = torch.randint(0, V, (48, rng.choice((1, 2, 4, 6, 9))))
        found = greedy(final_state, model, prompts, count)
        if found:
            return found
    raise ValueError("no prompt with a clear continuation")


def batch_json(batch, found):
    return {
        "input_ids": batch["ids"].tolist(),
        "attention_mask": batch["mask"].tolist(),
        "labels": batch["labels"].tolist(),
        "prompt_ids": found["prompt"],
        "max_new_tokens": len(found["greedy"]),
    }


def compared(batch):
    """Positions with at least one visible key."""
    return batch["mask"].cumsum(1) > 0


def evaluate(model, batch):
    with torch.no_grad():
        states = model.hidden_states(batch["ids"], batch["mask"])
        results = {f"hidden_states.{i}": h for i, h in enumerate(states)}
        return results | {"logits": model.logits(states[-1]), "loss": model.loss(states[-1], batch["labels"])}


def errors(out, ref, batch):
    where = compared(batch)
    hidden = [k for k in ref if k.startswith("hidden_states.")]
    return {
        "logits": relative(out["logits"][where], ref["logits"][where]),
        "loss": relative(out["loss"], ref["loss"]),
        "hidden_states": max(relative(out[k][where], ref[k][where]) for k in hidden),
    }


def tolerances(measured):
    """Tolerances by quantity, as in case.json; without float16 if its errors are too large."""
    half = measured.get("float16")
    if half and not all(error < MAX_ERROR for error in half.values()):
        measured.pop("float16")
    quantities = measured["float32"]
    return {q: {p: tolerance(of[q], p) for p, of in measured.items()} for q in quantities}


def write_random_model(folder, rng, draws=()):
    """Writes the case of a model, and returns what adapters need of it. `draws` fixes fields of the configuration."""
    stored_as, quantized = rng.choice(tuple(STORED)), rng.choice((None, None, "single", "double"))
    config = draw_config(rng, stored_as) | dict(draws)
    files, values, exact = draw_weights(rng, config, stored_as, quantized)
    if quantized:
        config["quantization_config"] = quantization_config(quantized == "double")
    batch = draw_batch(rng, config["vocab_size"])
    model = Model(EXACT, config, values, exact)
    found = draw_greedy(rng, lambda ids, mask: model.hidden_states(ids, mask)[-1], model)
    expected = evaluate(model, batch)
    measured = {
        precision: errors(evaluate(Model(ar, config, values, exact), batch), expected, batch)
        for precision, ar in (("float32", SINGLE), ("float16", HALF))
    }
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_checkpoint(folder, files, rng)
    write_json(folder / "batch.json", batch_json(batch, found))
    expected |= {"greedy": found["greedy"], "greedy_margin": found["margin"]}
    write_tensors(folder / "expected.safetensors", float32(expected), rng)
    write_json(folder / "case.json", {"stored_as": stored_as, "measured": measured, "tolerance": tolerances(measured)})
    return {"name": folder.name, "config": config, "values": values, "exact": exact}
