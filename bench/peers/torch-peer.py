"""The PyTorch process of bench/peers.mjs. It answers each line of JSON with one; a call's answer has its nanoseconds."""

import json
import sys
import time

import torch
import torch.nn.functional as F


def no_grad(compute, *shapes):
    operands = [torch.randn(*shape) for shape in shapes]

    def call():
        with torch.no_grad():
            compute(*operands)

    return call


def matmul(a, b, transposed):
    return no_grad((lambda x, w: x @ w.T) if transposed else (lambda x, w: x @ w), a, b)


def attention(*shapes):
    def compute(*heads):
        q, k, v = (x.transpose(1, 2) for x in heads)  # torch wants heads before positions
        F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return no_grad(compute, *shapes)


def cross_entropy(logits, labels):
    return no_grad(lambda x: F.cross_entropy(x, labels), logits)


def training_step(request):
    m, adamw = request["model"], request["adamw"]
    flat = torch.frombuffer(bytearray(open(request["path"], "rb").read()), dtype=torch.float32)
    p, at = {}, 0
    for name, shape in request["shapes"].items():
        size = torch.Size(shape).numel()
        p[name] = flat[at : at + size].reshape(shape).clone().requires_grad_()
        at += size
    optimizer = torch.optim.AdamW(
        p.values(), lr=adamw["lr"], betas=adamw["betas"], eps=adamw["eps"], weight_decay=adamw["weightDecay"]
    )
    ids, labels = torch.tensor(request["inputs"]), torch.tensor(request["targets"])
    b, t, d, heads, eps = m["B"], m["T"], m["d"], m["heads"], m["eps"]
    half = d // heads // 2
    angles = torch.outer(torch.arange(t).double(), m["theta"] ** (-torch.arange(half).double() / half))
    cos, sin = angles.cos().float()[None, :, None], angles.sin().float()[None, :, None]

    def rotate(x):
        low, high = x.chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).transpose(1, 2)

    def loss():
        x = p["embed"][ids.view(b, t)]
        for i in range(m["L"]):
            h = F.rms_norm(x, (d,), p[f"norm{i}a"], eps)
            q, k, v = (F.linear(h, p[f"{name}{i}"]).view(b, t, heads, -1) for name in "qkv")
            y = F.scaled_dot_product_attention(rotate(q), rotate(k), v.transpose(1, 2), is_causal=True)
            x = x + F.linear(y.transpose(1, 2).reshape(b, t, d), p[f"o{i}"])
            g = F.rms_norm(x, (d,), p[f"norm{i}b"], eps)
            inner = F.silu(F.linear(g, p[f"gate{i}"])) * F.linear(g, p[f"up{i}"])
            x = x + F.linear(inner, p[f"down{i}"])
        x = F.rms_norm(x, (d,), p["norm"], eps)
        return F.cross_entropy(F.linear(x.view(b * t, d), p["head"]), labels)

    def call():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return call


def small_op(calls):
    a, b = torch.ones(4), torch.ones(4)

    def call():
        with torch.no_grad():
            for _ in range(calls):
                torch.add(a, b)

    return call


MAKE = {
    "matmul": lambda r: matmul(*r["shapes"], r["transposed"]),
    "attention": lambda r: attention(*r["shapes"]),
    "rmsNorm": lambda r: no_grad(lambda x, gain: F.rms_norm(x, x.shape[-1:], gain, 1e-5), *r["shapes"]),
    "softmax": lambda r: no_grad(lambda x: torch.softmax(x, -1), *r["shapes"]),
    "siluMul": lambda r: no_grad(lambda gate, up: F.silu(gate) * up, *r["shapes"]),
    "transpose": lambda r: no_grad(lambda x: x.T.contiguous(), *r["shapes"]),
    "add": lambda r: no_grad(torch.add, *r["shapes"]),
    "crossEntropy": lambda r: cross_entropy(*r["shapes"], torch.tensor(r["labels"])),
    "trainingStep": training_step,
    "smallOp": lambda r: small_op(r["calls"]),
}


def main():
    torch.set_num_threads(int(sys.argv[1]))
    answer = lambda value: print(json.dumps(value), flush=True)
    answer({"label": f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads"})
    call = None
    for line in sys.stdin:
        request = json.loads(line)
        if "make" in request:
            call = MAKE[request["make"]](request)
            answer({})
        else:
            start = time.perf_counter_ns()
            result = call()
            answer({"elapsedNs": time.perf_counter_ns() - start, "result": result})


main()
