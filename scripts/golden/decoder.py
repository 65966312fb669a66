"""The decoder, for backbones and side blocks, in any arithmetic."""

import torch
from attention import attention, cross_entropy, rms_norm, rope_tables, rotate

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def rope_of(config):
    """theta and scaling, from any of the three forms of a configuration."""
    if "rope_parameters" in config:
        parameters = config["rope_parameters"]
        return parameters["rope_theta"], parameters
    return config["rope_theta"], config.get("rope_scaling")


class Form:
    """The form of a block: its sizes, norm, rope, and which linear layers have biases."""

    def __init__(self, config, sizes=None):
        own = sizes or config
        self.d, self.f = own["hidden_size"], own["intermediate_size"]
        self.n, self.m = own["num_attention_heads"], own["num_key_value_heads"]
        self.c = own.get("head_dim") or self.d // self.n
        self.eps = config["rms_norm_eps"]
        self.theta, self.scaling = rope_of(config)
        family = config["model_type"]
        biased = set()
        if family == "qwen2":
            biased |= {"q_proj", "k_proj", "v_proj"}
        if config.get("attention_bias"):
            biased |= set(ATTENTION)
        if config.get("mlp_bias"):
            biased |= set(MLP)
        self.biased, self.normed = biased, family == "qwen3"

    def shapes(self):
        """Shapes of a block's parameters, by their names in Hugging Face checkpoints."""
        q, kv = self.n * self.c, self.m * self.c
        linear = {"q_proj": (q, self.d), "k_proj": (kv, self.d), "v_proj": (kv, self.d), "o_proj": (self.d, q)}
        linear |= {"gate_proj": (self.f, self.d), "up_proj": (self.f, self.d), "down_proj": (self.d, self.f)}
        shapes = {"input_layernorm.weight": (self.d,), "post_attention_layernorm.weight": (self.d,)}
        for name, shape in linear.items():
            place = f"{'self_attn' if name in ATTENTION else 'mlp'}.{name}"
            shapes[f"{place}.weight"] = shape
            if name in self.biased:
                shapes[f"{place}.bias"] = shape[:1]
        if self.normed:
            shapes |= {"self_attn.q_norm.weight": (self.c,), "self_attn.k_norm.weight": (self.c,)}
        return shapes


class Projection:
    """Applies a linear layer by name, with its bias and the low-rank term of an adapter."""

    def __init__(self, ar, weights, low_rank=None):
        self.ar, self.weights, self.low_rank = ar, weights, low_rank or {}

    def __call__(self, x, name):
        ar, bias = self.ar, self.weights.get(f"{name}.bias")
        y = x @ self.weights[f"{name}.weight"].T
        y = ar.store(y if bias is None else y + bias)
        if name not in self.low_rank:
            return y
        a, b, scale = self.low_rank[name]
        return ar.store(y + ar.store(scale * ar.store(ar.store(x @ a.T) @ b.T)))


def block(ar, form, project, prefix, x, mask):
    weights, (B, T, _) = project.weights, x.shape
    cos, sin = rope_tables(form.c, form.theta, form.scaling, 0, T)

    def norm(value, name):
        return ar.store(rms_norm(value, weights[f"{prefix}{name}.weight"], form.eps))

    h = norm(x, "input_layernorm")
    q = project(h, f"{prefix}self_attn.q_proj").view(B, T, form.n, form.c)
    k = project(h, f"{prefix}self_attn.k_proj").view(B, T, form.m, form.c)
    v = project(h, f"{prefix}self_attn.v_proj").view(B, T, form.m, form.c)
    if form.normed:
        q, k = norm(q, "self_attn.q_norm"), norm(k, "self_attn.k_norm")
    q, k = ar.store(rotate(q, cos, sin)), ar.store(rotate(k, cos, sin))
    y = ar.store(attention(q, k, v, mask, 0, form.c**-0.5)).reshape(B, T, -1)
    x = ar.store(x + project(y, f"{prefix}self_attn.o_proj"))
    h = norm(x, "post_attention_layernorm")
    gate, up = project(h, f"{prefix}mlp.gate_proj"), project(h, f"{prefix}mlp.up_proj")
    inner = ar.store(torch.nn.functional.silu(gate) * up)
    return ar.store(x + project(inner, f"{prefix}mlp.down_proj"))


class Model:
    """A backbone with its weights in one arithmetic."""

    def __init__(self, ar, config, stored, exact=()):
        """`exact` names weights that the arithmetic does not round: dequantized ones."""
        self.ar, self.config, self.form = ar, config, Form(config)
        self.weights = {k: v.to(ar.dtype) if k in exact else ar.load(v) for k, v in stored.items()}
        self.layers = config["num_hidden_layers"]

    @property
    def head(self):
        tied = self.config["tie_word_embeddings"]
        return self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]

    def hidden_states(self, ids, mask, low_rank=None):
        """H_0 ... H_L."""
        project = Projection(self.ar, self.weights, low_rank)
        states = [self.weights["model.embed_tokens.weight"][ids]]
        for i in range(self.layers):
            states.append(block(self.ar, self.form, project, f"model.layers.{i}.", states[-1], mask))
        return states

    def logits(self, y):
        h = self.ar.store(rms_norm(y, self.weights["model.norm.weight"], self.form.eps))
        return self.ar.store(h @ self.head.T)

    def loss(self, y, labels):
        """Logits of position t against labels[t + 1]."""
        h = self.ar.store(rms_norm(y, self.weights["model.norm.weight"], self.form.eps))
        return cross_entropy((h[:, :-1] @ self.head.T).flatten(0, 1), labels[:, 1:].flatten())


def greedy(final_state, model, prompts, count):
    """
    Continues prompts [P, T] greedily. Returns the first whose best logit leads the second by more than 0.12 at every step,
    with its continuation and the leads, or None. `final_state` computes y from ids.
    """
    ids, leads = prompts, []
    for _ in range(count):
        with torch.no_grad():
            best, at = model.logits(final_state(ids, None))[:, -1].topk(2, -1)
        leads.append(best[:, 0] - best[:, 1])
        ids = torch.cat([ids, at[:, :1]], 1)
    leads = torch.stack(leads, 1)
    for row, lead in enumerate(leads):
        if lead.min() > 0.12:
            return {"prompt": prompts[row].tolist(), "greedy": ids[row, prompts.shape[1] :].int(), "margin": lead}
    return None
