"""Compares how well a Ladder and LoRA learn from the same tokens, in PyTorch: an independent check of bench/quality.mjs.

  sidenet convert --model M --dtype f32 --output FOLDER
  python bench/control.py FOLDER train.jsonl held-out.jsonl --train 400 --held-out 64 ladder ladder:r=4 ladder:l=4,top=4 lora lora:0-8

Records have "prompt" and "completion"; those of more than --max-length tokens are skipped. Side networks and LoRA are
implemented from their formulas (docs/adapter-format.md), without sidenet. Needs torch, transformers and safetensors.
"""

import argparse
import json
import math
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train_file", "held_out_file"):
        parser.add_argument(name)
    parser.add_argument("runs", nargs="+", help="ladder[:r=8,l=15,top=0,std=0.02] or lora[:first-last]")
    parser.add_argument("--train", type=int, default=400, help="records")
    parser.add_argument("--held-out", type=int, default=64, help="records")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--norm", type=float, default=64, help="initial value of the side network's norm")
    parser.add_argument("--full-text", action="store_true", help="score prompts too")
    parser.add_argument("--examples", type=int, default=0, help="solved records that stand before each record, unscored")
    return parser.parse_args()


def read(path, tokenizer, options, count):
    """(ids, labels) of the first `count` records that are short enough."""
    records = []
    for line in open(path, encoding="utf-8"):
        record = json.loads(line)
        if not {"prompt", "completion"} <= record.keys():
            raise SystemExit(f'{path}: a record has {", ".join(record)}, not "prompt" and "completion"')
        prompt = tokenizer(record["prompt"], add_special_tokens=False).input_ids
        completion = tokenizer(record["completion"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        ids = prompt + completion
        if len(ids) > options.max_length:
            continue
        records.append((ids, ids if options.full_text else [IGNORED] * len(prompt) + completion))
        if len(records) == count:
            break
    return records


def after_examples(records, examples, tokenizer):
    """The records with the same solved examples before each; nothing of the examples is scored."""
    separator = tokenizer("\n\n", add_special_tokens=False).input_ids
    before = [token for ids, _ in examples for token in ids[:-1] + separator]  # without the end of text
    return [(before + ids, [IGNORED] * len(before) + labels) for ids, labels in records]


def batches(records, size):
    """Rows padded on the right, as (ids, labels)."""
    for i in range(0, len(records) - size + 1, size):
        rows = records[i : i + size]
        length = max(len(ids) for ids, _ in rows)
        pad = lambda values, value: values + [value] * (length - len(values))
        yield torch.tensor([pad(ids, 0) for ids, _ in rows]), torch.tensor([pad(labels, IGNORED) for _, labels in rows])


def rms_norm(x, weight=1.0, eps=1e-5):
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class SideBlock(nn.Module):
    """A Llama block of width d with its own heads of size c."""

    def __init__(self, d, heads, c, f, layers, theta, std):
        super().__init__()
        self.heads, self.c, self.theta = heads, c, theta

        def linear(inputs, outputs, deviation=std):
            layer = nn.Linear(inputs, outputs, bias=False)
            nn.init.normal_(layer.weight, 0, deviation)
            return layer

        small = 0.02 / math.sqrt(2 * layers)
        self.q, self.k, self.v, self.o = (*(linear(d, heads * c) for _ in range(3)), linear(heads * c, d, small))
        self.gate, self.up, self.down = linear(d, f), linear(d, f), linear(f, d, small)
        self.norm1, self.norm2 = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))

    def rope(self, x):
        half = self.c // 2
        angles = torch.arange(x.shape[2])[:, None] * self.theta ** (-torch.arange(half) / half)
        cos, sin = (torch.cat([t, t], -1) for t in (angles.cos(), angles.sin()))
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def forward(self, x):
        B, T, _ = x.shape
        h = rms_norm(x, self.norm1)
        q, k, v = (p(h).view(B, T, self.heads, self.c).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rope(q), self.rope(k), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, -1))
        h = rms_norm(x, self.norm2)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Ladder(nn.Module):
    def __init__(self, config, norm, r=8, l=0, top=0, std=0.02):
        super().__init__()
        d, L = config.hidden_size, config.num_hidden_layers
        layers = int(l) or L // 2
        heads = max(1, int(config.num_attention_heads // r))
        c = 2 * round(d / (r * heads) / 2)
        width, inner = heads * c, 8 * math.ceil(config.intermediate_size / r / 8)
        rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
        self.rungs = [L - int(top) + k for k in range(1, layers + 1)] if top else [round(k * L / layers) for k in range(1, layers + 1)]
        self.down = nn.ParameterList(torch.randn(width, d) / math.sqrt(d) for _ in self.rungs)
        self.blocks = nn.ModuleList(SideBlock(width, heads, c, inner, layers, rope["rope_theta"], std) for _ in range(layers))
        self.norm, self.up = nn.Parameter(torch.full((width,), float(norm))), nn.Parameter(torch.zeros(d, width))

    def forward(self, states):
        s = 0
        for rung, down, block in zip(self.rungs, self.down, self.blocks):
            s = block(s + rms_norm(states[rung]) @ down.T)
        return rms_norm(s, self.norm) @ self.up.T


class Lora(nn.Module):
    def __init__(self, base, rank=16, alpha=32):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)


def add_lora(model, first, last):
    """LoRA on the seven linear layers of blocks first .. last - 1."""
    for block in model.model.layers[first:last]:
        for part in (block.self_attn, block.mlp):
            for name, layer in list(part.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(part, name, Lora(layer))
    return [p for p in model.parameters() if p.requires_grad]


def losses(model, ids, labels, ladder):
    """Losses of the scored positions, in the order of labels[:, 1:]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if ladder is None:
            h = model.model(ids).last_hidden_state
        else:
            with torch.no_grad():
                states = list(model.model(ids, output_hidden_states=True).hidden_states)
            states[-1] = model.last  # before the final norm
    if ladder is not None:
        y = states[-1].float() + ladder([state.float() for state in states])
        h = rms_norm(y, model.model.norm.weight)
    targets = labels[:, 1:].reshape(-1)
    scored = targets != IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = h[:, :-1].reshape(-1, h.shape[-1])[scored] @ model.lm_head.weight.T
    return F.cross_entropy(logits.float(), targets[scored], reduction="none")


def kinds(ids, labels, digits):
    """The kind of each scored token: a digit, one that occurred earlier in the record, or a new one."""
    for row, targets in zip(ids.tolist(), labels.tolist()):
        for at, target in enumerate(targets):
            if at and target != IGNORED:
                yield "digit" if target in digits else "repeated" if target in row[:at] else "new"


def run(name, options, train, held_out, digits):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval().requires_grad_(False)
    last = model.model.layers[-1]
    last.register_forward_hook(lambda _, __, out: setattr(model, "last", out[0] if isinstance(out, tuple) else out))
    kind, _, rest = name.partition(":")
    ladder, parameters = None, []
    if kind == "ladder":
        settings = {key: float(value) for key, value in (pair.split("=") for pair in rest.split(",") if pair)}
        ladder = Ladder(model.config, options.norm, **settings)
        parameters = list(ladder.parameters())
    elif kind == "lora":
        first, to = (int(n) for n in rest.split("-")) if rest else (0, model.config.num_hidden_layers)
        parameters = add_lora(model, first, to)
    steps = list(batches(train, options.batch)) if parameters else []
    optimizer = torch.optim.AdamW(parameters, lr=options.rate, weight_decay=0.01) if parameters else None
    began = time.time()
    for step, (ids, labels) in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1, (step + 1) / 5) * (1 + math.cos(math.pi * step / len(steps))) / 2
        optimizer.zero_grad()
        losses(model, ids, labels, ladder).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    by_kind = {"digit": [], "repeated": [], "new": []}
    for ids, labels in batches(held_out, min(4, options.batch)):
        with torch.no_grad():
            scored = losses(model, ids, labels, ladder).tolist()
        for kind_of, loss in zip(kinds(ids, labels, digits), scored, strict=True):
            by_kind[kind_of].append(loss)
    every = sum(by_kind.values(), [])
    parts = ", ".join(f"{len(part)} {kind_of} {sum(part) / len(part):.3f}" for kind_of, part in by_kind.items() if part)
    trained = sum(p.numel() for p in parameters)
    loss = sum(every) / len(every)
    print(f"{name}: {trained} parameters, held-out loss {loss:.4f} ({parts}), {time.time() - began:.0f} s", flush=True)


def main():
    options = arguments()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train = read(options.train_file, tokenizer, options, options.train)
    held_out = read(options.held_out_file, tokenizer, options, options.held_out)
    digits = {token for token in tokenizer.get_vocab().values() if tokenizer.decode([token]).strip().isdigit()}
    print(f"{sum(len(ids) for ids, _ in train)} tokens in {len(train)} records", flush=True)
    examples = train[: options.examples]
    train, held_out = (after_examples(records, examples, tokenizer) for records in (train[len(examples) :], held_out))
    for name in ["nothing", *options.runs]:
        run(name, options, train, held_out, digits)


if __name__ == "__main__":
    main()
