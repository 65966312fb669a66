"""Side networks and LoRA on a backbone: losses, gradients and training steps, in any arithmetic."""

import math
import re

import torch
from decoder import Form, Projection, block
from attention import rms_norm


class SideNetwork:
    """Ladder and xLadder, which differ only in their rungs."""

    def __init__(self, config, backbone):
        self.config = config
        self.form = Form(backbone, config)
        self.eps = backbone["rms_norm_eps"]

    def shapes(self, d):
        config, own = self.config, self.form.d
        first = 0 if config["initial_rung"] else 1
        shapes = {f"ladder.rungs.{k}.down.weight": (own, d) for k in range(first, len(config["rungs"]) + 1)}
        if config["fusion"] == "gate":
            shapes |= {f"ladder.rungs.{k}.gate": (1,) for k in range(1, len(config["rungs"]) + 1)}
        for k in range(1, config["num_hidden_layers"] + 1):
            shapes |= {f"ladder.layers.{k}.{name}": shape for name, shape in self.form.shapes().items()}
        return shapes | {"ladder.norm.weight": (own,), "ladder.up.weight": (d, own)}

    def read(self, ar, weights, k, h):
        """Rung k of a hidden state: D_k n(H)."""
        if self.config["rung_norm"]:
            h = ar.store(rms_norm(h, None, self.eps))
        return ar.store(h @ weights[f"ladder.rungs.{k}.down.weight"].T)

    def fuse(self, ar, weights, k, s, r):
        if self.config["fusion"] == "add":
            return r if s is None else ar.store(s + r)
        mu = torch.sigmoid(weights[f"ladder.rungs.{k}.gate"] / self.config["gate_temperature"])
        own = ar.store((1 - mu) * r)
        return own if s is None else ar.store(ar.store(mu * s) + own)

    def run(self, model, parameters, ids, mask):
        """y, and s_1 ... s_l by their names in expected.safetensors."""
        ar, config = model.ar, self.config
        with torch.no_grad():
            hidden = model.hidden_states(ids, mask)
        weights = {k: v if k.endswith(".gate") else ar.store(v) for k, v in parameters.items()}
        project = Projection(ar, weights)
        s = self.read(ar, weights, 0, hidden[0]) if config["initial_rung"] else None
        shown = {}
        for k in range(1, config["num_hidden_layers"] + 1):
            if k <= len(config["rungs"]):
                s = self.fuse(ar, weights, k, s, self.read(ar, weights, k, hidden[config["rungs"][k - 1]]))
            s = shown[f"side_states.{k}"] = block(ar, self.form, project, f"ladder.layers.{k}.", s, mask)
        last = ar.store(rms_norm(s, weights["ladder.norm.weight"], self.eps))
        return ar.store(hidden[-1] + ar.store(last @ weights["ladder.up.weight"].T)), shown


def first_match(patterns, module):
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)


class Lora:
    """LoRA, with ranks and scales by the fields of PEFT's configuration."""

    def __init__(self, config, backbone):
        self.layers = {}
        chosen = config["layers_to_transform"]
        linear = {k[: -len(".weight")]: v for k, v in Form(backbone).shapes().items() if len(v) == 2}
        for i in range(backbone["num_hidden_layers"]):
            if chosen is not None and i not in ([chosen] if isinstance(chosen, int) else chosen):
                continue
            for name, (out, into) in linear.items():
                if name.split(".")[-1] not in config["target_modules"]:
                    continue
                module = f"model.layers.{i}.{name}"
                r = first_match(config["rank_pattern"], module) or config["r"]
                alpha = first_match(config["alpha_pattern"], module) or config["lora_alpha"]
                scale = alpha / (math.sqrt(r) if config["use_rslora"] else r)
                self.layers[module] = (out, into, r, scale)

    def shapes(self, _):
        shapes = {}
        for module, (out, into, r, _) in self.layers.items():
            shapes[f"base_model.model.{module}.lora_A.weight"] = (r, into)
            shapes[f"base_model.model.{module}.lora_B.weight"] = (out, r)
        return shapes

    def run(self, model, parameters, ids, mask):
        def part(module, which):
            return model.ar.store(parameters[f"base_model.model.{module}.lora_{which}.weight"])

        low_rank = {m: (part(m, "A"), part(m, "B"), scale) for m, (*_, scale) in self.layers.items()}
        return model.hidden_states(ids, mask, low_rank)[-1], {}


def gradients_of(adapter, model, parameters, batch):
    """The loss, and its gradients by parameter."""
    y, _ = adapter.run(model, parameters, batch["ids"], batch["mask"])
    loss = model.loss(y, batch["labels"])
    scaled = torch.autograd.grad(loss * model.ar.loss_scale, list(parameters.values()))
    return loss.detach(), {k: g / model.ar.loss_scale for k, g in zip(parameters, scaled, strict=True)}


def train(adapter, model, start, batch, training):
    """Trains with PyTorch's AdamW and clipping. Returns losses, norms before clipping, and the parameters."""
    parameters = {k: torch.nn.Parameter(v.to(model.ar.dtype, copy=True)) for k, v in start.items()}
    settings = {k: training[k] for k in ("lr", "eps", "weight_decay")} | {"betas": tuple(training["betas"])}
    optimizer = torch.optim.AdamW(parameters.values(), **settings)
    losses, norms = [], []
    for _ in range(training["steps"]):
        loss, gradients = gradients_of(adapter, model, parameters, batch)
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        losses.append(loss)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), training["max_grad_norm"]))
        optimizer.step()
    with torch.no_grad():
        y, _ = adapter.run(model, parameters, batch["ids"], batch["mask"])
        losses.append(model.loss(y, batch["labels"]))
    return torch.stack(losses), torch.stack(norms), {k: v.detach() for k, v in parameters.items()}


def evaluate(adapter, model, start, batch, training):
    """Everything in the expected.safetensors of an adapter except the continuation."""
    parameters = {k: torch.nn.Parameter(v.to(model.ar.dtype, copy=True)) for k, v in start.items()}
    with torch.no_grad():
        y, shown = adapter.run(model, parameters, batch["ids"], batch["mask"])
        results = shown | ({"y": y} if isinstance(adapter, SideNetwork) else {}) | {"logits": model.logits(y)}
    loss, gradients = gradients_of(adapter, model, parameters, batch)
    losses, norms, after = train(adapter, model, start, batch, training)
    results |= {"loss": loss, "losses": losses, "grad_norms": norms}
    results |= {f"grad.{k}": v for k, v in gradients.items()}
    return results | {f"after.{k}": v for k, v in after.items()}
