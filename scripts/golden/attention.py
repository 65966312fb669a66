"""What ops and models share: norm, rotary embeddings, softmax, attention, loss."""

import math

import torch


def rms_norm(x, w, eps):
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if w is None else w * y


def inverse_frequencies(head_dim, theta, scaling):
    """In double. `scaling` has rope_type or type; None and "default" leave the frequencies unchanged."""
    base = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind == "default":
        return base
    if kind == "linear":
        return [f / scaling["factor"] for f in base]
    if kind != "llama3":
        raise ValueError(kind)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]

    def scaled(f):
        wave = 2 * math.pi / f
        if wave < context / high:
            return f
        if wave > context / low:
            return f / scaling["factor"]
        s = (context / wave - low) / (high - low)
        return (1 - s) * f / scaling["factor"] + s * f

    return [scaled(f) for f in base]


def rope_tables(head_dim, theta, scaling, offset, length):
    """cos and sin [T, c/2] in double."""
    positions = torch.arange(offset, offset + length, dtype=torch.float64)
    angles = positions[:, None] * torch.tensor(inverse_frequencies(head_dim, theta, scaling), dtype=torch.float64)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotates the pairs of elements i and i + c/2 of x [B,T,n,c]."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def softmax(x, visible):
    """Over the last axis. `visible` is a boolean mask or None; rows without a visible element are 0."""
    if visible is None:
        return torch.softmax(x, -1)
    largest = x.detach().masked_fill(~visible, -math.inf).amax(-1, keepdim=True)
    largest = torch.where(largest == -math.inf, torch.zeros_like(largest), largest)
    e = torch.exp((x - largest).masked_fill(~visible, 0)) * visible
    total = e.sum(-1, keepdim=True)
    return e / torch.where(total == 0, torch.ones_like(total), total)


def attention(q, k, v, key_mask, offset, scale):
    """q [B,T,n,c], k and v [B,S,m,c], key_mask [B,S] or None; key s is visible to query t if s <= t + offset."""
    T, S = q.shape[1], k.shape[1]
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = torch.einsum("btnc,bsnc->bnts", q, k) * scale
    visible = torch.arange(S)[None, :] <= torch.arange(T)[:, None] + offset
    visible = visible[None, None].expand(scores.shape)
    if key_mask is not None:
        visible = visible & (key_mask != 0)[:, None, None, :]
    return torch.einsum("bnts,bsnc->btnc", softmax(scores, visible), v)


def cross_entropy(logits, targets):
    """Mean over rows whose target is not -100."""
    kept = targets != -100
    rows = torch.log_softmax(logits, -1)[kept]
    return -rows.gather(1, targets[kept].long()[:, None]).mean()
