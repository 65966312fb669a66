"""Writes random golden cases.

python generate.py FOLDER --seed 1 --ops 60 --models 12 --adapters 24
"""

import argparse
import random
from pathlib import Path

import torch

import nf4_draws
import op_draws
from adapter_draws import write_random_adapter
from model_draws import write_random_model


def ops(folder, seed, count):
    names = sorted([*op_draws.DRAWS, *nf4_draws.DRAWS])
    for n in range(count):
        op = names[n % len(names)]
        rng = random.Random(f"{seed} {op} {n}")
        torch.manual_seed(rng.getrandbits(60))
        to = folder / "ops" / op / f"{seed}-{n}"
        write = nf4_draws.DRAWS.get(op) or (lambda to, rng, op=op: op_draws.write_random_op(to, op, rng))
        while not write(to, rng):
            pass


def models(folder, seed, count):
    """Returns what adapters need of each model."""
    made = []
    for n in range(count):
        rng = random.Random(f"{seed} model {n}")
        torch.manual_seed(rng.getrandbits(60))
        made.append(write_random_model(folder / "models" / f"{seed}-{n}", rng))
    return made


def adapters(folder, seed, count, bases):
    for n in range(count):
        rng = random.Random(f"{seed} adapter {n}")
        torch.manual_seed(rng.getrandbits(60))
        write_random_adapter(folder / "adapters" / f"{seed}-{n}", rng, bases[n % len(bases)])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    for kind in ("ops", "models", "adapters"):
        parser.add_argument(f"--{kind}", type=int, default=0)
    options = parser.parse_args()
    if options.adapters and not options.models:
        parser.error("adapters need models")
    torch.set_num_threads(1)
    ops(options.folder, options.seed, options.ops)
    bases = models(options.folder, options.seed, options.models)
    adapters(options.folder, options.seed, options.adapters, bases)


if __name__ == "__main__":
    main()
