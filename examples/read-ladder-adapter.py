"""Loads a Ladder or xLadder adapter into PyTorch and computes the model's logits. docs/adapter-format.md explains the files.

    python read-ladder-adapter.py MODEL_DIR ADAPTER_DIR 58,50,6,11      prints the best next tokens after these ids
    python read-ladder-adapter.py --golden CASE_DIR...                  compares logits with a case's expected.safetensors
Needs torch and safetensors. MODEL_DIR: config.json and safetensors of the Llama family, plain or NF4."""
import glob, json, math, os, sys, torch
from safetensors import safe_open
from safetensors.torch import load_file
F = torch.nn.functional

def read_weights(folder):
    raw = {}
    for path in sorted(glob.glob(os.path.join(folder, "*model*.safetensors"))): raw.update(load_file(path))
    state = ".quant_state.bitsandbytes__nf4"
    weights = {name: t.float() for name, t in raw.items() if t.is_floating_point()}
    for name in [n[: -len(state)] for n in raw if n.endswith(state)]:            # NF4: two codes a byte, high nibble first
        info = json.loads(bytes(raw[name + state].tolist()))
        scales = raw[name + ".absmax"]
        if "nested_blocksize" in info:                                           # double quantization
            nested = raw[name + ".nested_absmax"].repeat_interleave(info["nested_blocksize"])[: len(scales)]
            scales = raw[name + ".nested_quant_map"][scales.long()] * nested + info["nested_offset"]
        codes = torch.stack([raw[name].flatten() >> 4, raw[name].flatten() & 15], 1).flatten().long()
        values = raw[name + ".quant_map"][codes] * scales.repeat_interleave(info["blocksize"])[: len(codes)]
        weights[name] = values[: math.prod(info["shape"])].reshape(info["shape"])
    return weights

def rms_norm(x, eps, w=1.0): return w * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
def rope_tables(config, head_dim, length):
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.get("rope_theta") or config.get("rope_theta", 10000.0)
    f = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "linear": f = f / rope["factor"]
    elif kind == "llama3":
        low, high, n = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
        s = ((n * f / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        f = (1 - s) * f / rope["factor"] + s * f
    elif kind != "default": raise ValueError(f"rope type {kind}")
    angles = torch.outer(torch.arange(length, dtype=torch.float64), f)
    return angles.cos(), angles.sin()                                            # [T, head_dim / 2]
def rotate(x, cos, sin):                                                         # x [B, heads, T, c], pairs i and i + c/2
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
def block(x, w, prefix, heads, kv_heads, head_dim, eps, rope, mask):
    get = lambda name: w.get(prefix + name)
    linear = lambda name, h: F.linear(h, get(name + ".weight"), get(name + ".bias"))
    B, T, _ = x.shape
    h = rms_norm(x, eps, get("input_layernorm.weight"))
    split = lambda name, n: linear("self_attn." + name, h).view(B, T, n, head_dim)
    q, k, v = split("q_proj", heads), split("k_proj", kv_heads), split("v_proj", kv_heads)
    if get("self_attn.q_norm.weight") is not None:
        q, k = rms_norm(q, eps, get("self_attn.q_norm.weight")), rms_norm(k, eps, get("self_attn.k_norm.weight"))
    q, k, v = rotate(q.transpose(1, 2), *rope), rotate(k.transpose(1, 2), *rope), v.transpose(1, 2)
    k, v = k.repeat_interleave(heads // kv_heads, 1), v.repeat_interleave(heads // kv_heads, 1)
    scores = (q @ k.transpose(2, 3) / math.sqrt(head_dim)).masked_fill(~mask, float("-inf"))
    a = torch.nan_to_num(scores.softmax(-1)) @ v                                 # 0 without a visible key
    x = x + linear("self_attn.o_proj", a.transpose(1, 2).reshape(B, T, heads * head_dim))
    h = rms_norm(x, eps, get("post_attention_layernorm.weight"))
    return x + linear("mlp.down_proj", F.silu(linear("mlp.gate_proj", h)) * linear("mlp.up_proj", h))

def forward(config, w, side, ids, visible):                                      # side: (adapter config, its weights, prefix ids)
    c, s, prefix = side
    eps, n, L = config.get("rms_norm_eps", 1e-6), config["num_attention_heads"], config["num_hidden_layers"]
    kv, dim = config.get("num_key_value_heads") or n, config.get("head_dim") or config["hidden_size"] // n
    B, P = ids.shape[0], len(prefix)                                             # the model alone reads the prefix
    ids, visible = torch.cat([torch.tensor([prefix] * B, dtype=ids.dtype).view(B, P), ids], 1), F.pad(visible, (P, 0), value=1)
    T = ids.shape[1]
    mask = torch.ones(T, T, dtype=torch.bool).tril() & visible.bool()[:, None, None, :]
    H = [w["model.embed_tokens.weight"][ids]]
    rope = rope_tables(config, dim, T)
    for i in range(L): H.append(block(H[i], w, f"model.layers.{i}.", n, kv, dim, eps, rope, mask))
    H, mask, T = [h[:, P:] for h in H], mask[..., P:, P:], T - P
    norm = lambda h: rms_norm(h, eps) if c["rung_norm"] else h                   # the side network, methods as in the doc
    read = lambda k, t: F.linear(norm(H[t]), s[f"ladder.rungs.{k}.down.weight"])
    state = read(0, 0) if c["initial_rung"] else torch.zeros(B, T, c["hidden_size"], dtype=H[0].dtype)
    rope = rope_tables(config, c["head_dim"], T)
    for k in range(1, c["num_hidden_layers"] + 1):
        if k <= len(c["rungs"]):
            mu = torch.sigmoid(s[f"ladder.rungs.{k}.gate"] / c["gate_temperature"]) if c["fusion"] == "gate" else None
            rung = read(k, c["rungs"][k - 1])
            state = state + rung if mu is None else mu * state + (1 - mu) * rung
        heads = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        state = block(state, s, f"ladder.layers.{k}.", *heads, eps, rope, mask)
    y = H[-1] + F.linear(rms_norm(state, eps, s["ladder.norm.weight"]), s["ladder.up.weight"])
    head = w["model.embed_tokens.weight"] if config.get("tie_word_embeddings") else w["lm_head.weight"]
    return F.linear(rms_norm(y, eps, w["model.norm.weight"]), head)

def load(model, adapter):
    double = lambda tensors: {name: t.double() for name, t in tensors.items()}   # float() works too
    configs = [json.load(open(os.path.join(*path))) for path in ((model, "config.json"), (adapter, "adapter_config.json"))]
    with safe_open(os.path.join(adapter, "adapter_model.safetensors"), "pt") as file: metadata = file.metadata() or {}
    prefix = [int(i) for i in metadata.get("prefix_ids", "").split()]
    return configs[0], double(read_weights(model)), (configs[1], double(read_weights(adapter)), prefix)
if len(sys.argv) < 3 or (sys.argv[1] != "--golden" and len(sys.argv) != 4): sys.exit(__doc__)
if sys.argv[1] == "--golden":
    for case in sys.argv[2:]:
        base = json.load(open(os.path.join(case, "adapter_config.json")))["base_model_name_or_path"]
        batch = {k: torch.tensor(v) for k, v in json.load(open(os.path.join(case, "batch.json"))).items() if k != "max_new_tokens"}
        valid = batch["attention_mask"].cumsum(1) > 0                            # positions with a visible key
        wanted = load_file(os.path.join(case, "expected.safetensors"))["logits"][valid]
        got = forward(*load(os.path.join(case, base), case), batch["input_ids"], batch["attention_mask"])[valid]
        print(f"{os.path.basename(os.path.normpath(case))}: relative error {((got - wanted).norm() / wanted.norm()).item():.1e}")
else:
    ids = torch.tensor([[int(i) for i in sys.argv[3].split(",")]])
    best = forward(*load(*sys.argv[1:3]), ids, torch.ones_like(ids))[0, -1].topk(5)
    print("\n".join(f"{i} {v:.4f}" for i, v in zip(best.indices.tolist(), best.values.tolist())))
