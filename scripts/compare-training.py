# The Python half of compare-training.mjs.
#
#   python compare-training.py MANIFEST.json    trains each case of the manifest, and writes results.json beside it

import json
import sys
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer


def load_records(case):
    """Ids and labels of every record: a text is learned, of a prompt with a completion the latter; both end in EOS."""
    tokenizer = Tokenizer.from_file(f"{case['model']}/tokenizer.json")
    end = tokenizer.token_to_id("<|endoftext|>")
    records = []
    for line in Path(case["data"]).read_text().splitlines():
        row = json.loads(line)
        if "text" in row:
            ids = tokenizer.encode(row["text"]).ids + [end]
            records.append((ids, ids))
        else:
            prompt = tokenizer.encode(row["prompt"]).ids
            completion = tokenizer.encode(row["completion"]).ids + [end]
            records.append((prompt + completion, [-100] * len(prompt) + completion))
    return tokenizer, records, end


def load_model(folder):
    """In float64, except what transformers computes in float32 whatever the type: norms and the tables of rope."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


class Whole:
    """Full fine-tuning."""

    def __init__(self, case):
        self.model = load_model(case["model"])
        self.parameters = dict(self.model.named_parameters())

    def logits(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).logits


class Peft(Whole):
    """LoRA, from the initial adapter that sidenet wrote."""

    def __init__(self, case):
        model = peft.PeftModel.from_pretrained(load_model(case["model"]), case["initial"], is_trainable=True)
        self.model = model.double()
        named = self.model.named_parameters()
        self.parameters = {name.replace(".default", ""): p for name, p in named if p.requires_grad}


class Ladder:
    """
    A side network, y = H_L + U norm(s_l): a decoder of transformers at the side network's sizes, whose layer k first adds what
    its rung reads, D_k n(H), or mixes it in by a gate.
    """

    def __init__(self, case):
        self.model = load_model(case["model"]).requires_grad_(False)
        self.config = json.loads(Path(case["initial"], "adapter_config.json").read_text())
        sizes = ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"]
        side = json.loads(Path(case["model"], "config.json").read_text())
        side |= {name: self.config[name] for name in [*sizes, "head_dim"]}
        self.prefix = Tokenizer.from_file(f"{case['model']}/tokenizer.json").encode(case["prefix"]).ids
        self.side = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**side)).double()
        loaded = load_file(Path(case["initial"], "adapter_model.safetensors"))
        self.parameters = {name: torch.nn.Parameter(value.double()) for name, value in loaded.items()}
        modules = dict(self.side.named_parameters())
        for name, parameter in self.parameters.items():
            if name.startswith("ladder.layers.") or name == "ladder.norm.weight":
                self.place(modules, name, parameter)
        for k, layer in enumerate(self.side.layers, 1):
            layer.register_forward_pre_hook(lambda _, args, k=k: (self.fuse(k, args[0]), *args[1:]))
        self.model.model.norm.register_forward_pre_hook(lambda _, args: setattr(self, "last", args[0]))

    def place(self, modules, name, parameter):
        """Makes a parameter of the file that of its layer; the file counts layers from 1."""
        parts = name.split(".")[1:]
        if parts[0] == "layers":
            parts[1] = str(int(parts[1]) - 1)
        assert modules[".".join(parts)].shape == parameter.shape, name
        setattr(self.side.get_submodule(".".join(parts[:-1])), parts[-1], parameter)

    def read(self, k, hidden):
        eps = self.model.config.rms_norm_eps
        normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps) if self.config["rung_norm"] else hidden
        return normed @ self.parameters[f"ladder.rungs.{k}.down.weight"].T

    def fuse(self, k, state):
        if k > len(self.config["rungs"]):
            return state
        read = self.read(k, self.hidden[self.config["rungs"][k - 1]])
        if self.config["fusion"] == "add":
            return state + read
        mu = torch.sigmoid(self.parameters[f"ladder.rungs.{k}.gate"] / self.config["gate_temperature"])
        return mu * state + (1 - mu) * read

    def logits(self, ids, mask):
        B, P = ids.shape[0], len(self.prefix)
        before = torch.tensor([self.prefix] * B, dtype=ids.dtype).view(B, P)
        whole, visible = torch.cat([before, ids], 1), torch.cat([torch.ones_like(before), mask], 1)
        with torch.no_grad():
            states = self.model.model(input_ids=whole, attention_mask=visible, output_hidden_states=True).hidden_states
            self.hidden = [state[:, P:] for state in [*states[:-1], self.last]]  # transformers applies the final norm to the last
        last = self.hidden[-1]
        zeros = last.new_zeros(*ids.shape, self.config["hidden_size"])
        start = self.read(0, self.hidden[0]) if self.config["initial_rung"] else zeros
        state = self.side(inputs_embeds=start, attention_mask=mask).last_hidden_state  # normed with w_side
        y = last + state @ self.parameters["ladder.up.weight"].T
        return self.model.lm_head(self.model.model.norm(y))


METHODS = {"lora": Peft, "qlora": Peft, "full": Whole, "ladder": Ladder, "xladder": Ladder, "prefix": Ladder}


def summed_loss(method, records):
    """The summed loss of records in one padded batch, and how many tokens were scored."""
    length = max(len(ids) for ids, _ in records)
    pad = lambda values, filler: torch.tensor([list(row) + [filler] * (length - len(row)) for row in values])
    ids = pad([ids for ids, _ in records], 0)
    labels = pad([labels for _, labels in records], -100)[:, 1:]
    mask = pad([[1] * len(ids) for ids, _ in records], 0)
    logits = method.logits(ids, mask)[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss, (labels != -100).sum().item()


@torch.no_grad()
def held_out_loss(method, records):
    losses = [summed_loss(method, [record]) for record in records]
    return sum(loss.item() for loss, _ in losses) / sum(count for _, count in losses)


@torch.no_grad()
def greedy_gap(method, prompt, continuation, count, end):
    """How far, at most, the logit of a token that sidenet chose is below the largest; 0 where all are the same."""
    chosen = continuation + [end] * (len(continuation) < count)
    ids = torch.tensor([prompt + chosen])
    logits = method.logits(ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1]
    return (logits.max(-1).values - logits.gather(1, torch.tensor(chosen)[:, None])[:, 0]).max().item()


def rate_of(case, optimizer):
    """The cosine of transformers after the warm-up, whose first step has a rate of lr / warmup here and of 0 there."""
    cosine = transformers.get_cosine_schedule_with_warmup(optimizer, case["warmup"], len(case["steps"])).lr_lambdas[0]
    return lambda step: case["lr"] * ((step + 1) / case["warmup"] if step < case["warmup"] else cosine(step))


@torch.no_grad()
def adapter_difference(theirs, initial, folder):
    """The norm of the difference from sidenet's final adapter, relative to that of what training has added."""
    ours = load_file(Path(folder, "adapter_model.safetensors"))
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    distance = lambda values: sum((values[name] - theirs[name]).square().sum() for name in theirs).sqrt().item()
    return distance(ours) / distance(initial)


def run(case):
    torch.manual_seed(0)
    method = METHODS[case["title"]](case)
    tokenizer, records, end = load_records(case)
    held_out = records[-case["held_out"] :]
    parameters = list(method.parameters.values())
    initial = {name: value.detach().clone() for name, value in method.parameters.items()}
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.01)
    rate = rate_of(case, optimizer)
    report = {"loss": [], "grad_norm": [], "learning_rate": [], "eval_before": held_out_loss(method, held_out)}
    for step, batches in enumerate(case["steps"]):
        losses = [summed_loss(method, [records[i] for i in batch]) for batch in batches]
        loss = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
        report["loss"].append(loss.item())
        report["grad_norm"].append(norm.item())
        report["learning_rate"].append(rate(step))
    report["eval_after"] = held_out_loss(method, held_out)
    report["adapter_difference"] = adapter_difference(method.parameters, initial, case["output"])
    report["gap"] = max(
        greedy_gap(method, tokenizer.encode(prompt).ids, ids, case["new_tokens"], end)
        for prompt, ids in zip(case["prompts"], case["ours"]["ids"], strict=True)
    )
    return report


def main():
    torch.set_num_threads(1)
    manifest = Path(sys.argv[1])
    results = {case["name"]: run(case) for case in json.loads(manifest.read_text())["cases"]}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    manifest.with_name("results.json").write_text(json.dumps({"versions": versions, "results": results}))


main()
